"""Two servers of one registry: a job is one server's at a time, and goes on on another one if that server is gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from graft_client.schemas.jobs import JobProgress, JobState
from graft_server.registry import Registry
from graft_server.registry.errors import LostClaimError

GONE = -1.0
"""A lease that has run out when it is given."""


@pytest.fixture
def pair(data_dir, tmp_path, database_url):
    """Two servers with data folders of their own, one database and one folder of artefacts."""
    url = database_url or f"sqlite:///{tmp_path / 'registry.db'}"
    opened = [Registry.open(tmp_path / name, url, (tmp_path / "shared").as_uri()) for name in ("first", "second")]
    yield opened
    for registry in opened:
        registry.close()


@pytest.fixture
def submit(pair, make_folder):
    def create(adapter="de", registry=pair[0]):
        rows = registry.add_dataset(task="translation", format="jsonl", rows=1, bad_rows=0, folder=make_folder("rows"))
        return registry.create_job(task="translation", adapter=adapter, dataset=rows.id, method="lora", options={})

    return create


def test_a_job_is_one_servers(pair, submit):
    jobs = {submit().id for _ in range(20)}
    with ThreadPoolExecutor(4) as pool:
        claimed = list(pool.map(lambda number: pair[number % 2].claim_job(), range(24)))
    found = [job for job in claimed if job is not None]
    assert {job.id for job in found} == jobs
    assert len(found) == 20
    assert len({job.claim.server for job in found}) == 2


def test_a_server_keeps_its_name(pair, tmp_path):
    first, second = pair
    name = first.server
    assert name != second.server
    again = Registry.open(tmp_path / "first", f"sqlite:///{tmp_path / 'other.db'}")
    assert again.server == name
    again.close()


def test_a_server_that_starts_leaves_the_jobs_of_others_alone(pair, submit):
    first, second = pair
    job = submit()
    claim = first.claim_job().claim
    assert second.recover_jobs() == []
    assert second.claim_job() is None
    assert [held.id for held in first.renew_claims([claim], lease=30)] == [job.id]
    assert [left.id for left in first.recover_jobs()] == [job.id]


def test_a_job_goes_on_where_its_server_is_not_heard_of(pair, submit):
    first, second = pair
    job = submit()
    first.claim_job(lease=GONE)
    assert second.claim_job(take_over=False) is None
    taken = second.claim_job()
    assert (taken.id, taken.attempts, taken.claim.server) == (job.id, 2, second.server)
    told = [event.data for event in first.events(job.id) if event.kind == "state"]
    assert [data["state"] for data in told] == ["queued", "running", "queued", "running"]
    assert told[2]["reason"] == "the server that ran it was not heard of for too long"


def test_who_lost_a_job_writes_nothing(pair, submit, make_folder, lineage):
    first, second = pair
    job = submit()
    stale = first.claim_job(lease=GONE).claim
    fresh = second.claim_job().claim
    before = first.job(job.id), first.events(job.id)
    for write in (
        lambda: first.update_job(job.id, progress=JobProgress(step=7), claim=stale),
        lambda: first.update_job(job.id, state=JobState.failed, error="gone", claim=stale),
        lambda: first.add_event(job.id, "log", {"message": "late"}, claim=stale),
        lambda: first.publish("de", make_folder(), lineage, job_id=job.id, claim=stale),
    ):
        with pytest.raises(LostClaimError, match="not at work on this server any more"):
            write()
    assert first.renew_claims([stale], lease=30) == []
    assert (first.job(job.id), first.events(job.id)) == before
    assert first.adapters() == []
    assert second.publish("de", make_folder(), lineage, job_id=job.id, claim=fresh).ref == "de@1"
    assert second.job(job.id).claim is None


def test_a_claim_of_a_server_that_has_it_again_is_another_one(pair, submit):
    first, _ = pair
    submit()
    stale = first.claim_job(lease=GONE).claim
    fresh = first.claim_job().claim
    assert fresh == replace(stale, number=2)
    with pytest.raises(LostClaimError):
        first.update_job(stale.job, progress=JobProgress(step=1), claim=stale)


def test_a_claim_that_ran_out_holds_until_somebody_takes_the_job(pair, submit):
    first, second = pair
    submit()
    claim = first.claim_job(lease=GONE).claim
    first.update_job(claim.job, progress=JobProgress(step=1), claim=claim)
    assert len(first.renew_claims([claim], lease=30)) == 1
    assert second.claim_job() is None


def test_a_job_to_be_cancelled_is_cancelled_when_its_server_is_gone(pair, submit):
    first, second = pair
    job = submit()
    claim = first.claim_job(lease=GONE).claim
    second.request_cancel(job.id)
    assert [held.cancel_requested for held in first.renew_claims([claim], lease=GONE)] == [True]
    assert second.claim_job() is None
    assert first.job(job.id).state is JobState.cancelled


def test_a_job_waits_for_a_server_that_has_its_dataset(data_dir, tmp_path, make_folder, database_url):
    url = database_url or f"sqlite:///{tmp_path / 'registry.db'}"
    first, second = (Registry.open(tmp_path / name, url) for name in ("first", "second"))
    jobs = []
    for registry, rows in ((first, "1"), (second, "2")):
        stored = registry.add_dataset(task="translation", format="jsonl", rows=1, bad_rows=0, folder=make_folder(rows))
        job = registry.create_job(task="translation", adapter="de", dataset=stored.id, method="lora", options={})
        jobs.append(job.id)
    assert second.claim_job().id == jobs[1]
    assert second.claim_job() is None
    assert first.claim_job().id == jobs[0]
    first.close()
    second.close()
