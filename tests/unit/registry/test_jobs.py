"""The queue and the life of a job."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from graft_client.schemas.jobs import JobProgress, JobState
from graft_server.registry import ConflictError, InvalidNameError, Registry, UnknownError


@pytest.fixture
def new_job(registry, dataset):
    def create(adapter="de-strings"):
        return registry.create_job(
            task="translation", adapter=adapter, dataset=dataset, method="lora", options={"r": 8}
        )

    return create


def states(registry, job):
    return [event.data["state"] for event in registry.events(job.id) if event.kind == "state"]


def test_a_job_from_queue_to_version(registry, new_job, make_folder, lineage):
    job = new_job()
    assert (job.state, job.attempts, job.started_at) == (JobState.queued, 0, None)
    assert job.folder.is_dir()

    running = registry.claim_job()
    assert (running.id, running.state, running.attempts) == (job.id, JobState.running, 1)
    registry.update_job(job.id, progress=JobProgress(phase="train", step=3, loss=1.5))
    assert registry.job(job.id).progress.step == 3
    registry.update_job(job.id, state=JobState.evaluating)
    version = registry.publish(
        "de-strings", make_folder(), lineage, job_id=job.id, job_update={"train_seconds": 2.5, "train_tokens": 10}
    )

    done = registry.job(job.id)
    assert (done.state, done.version, done.train_seconds) == (JobState.succeeded, "de-strings@1", 2.5)
    assert done.created_at <= done.started_at <= done.finished_at
    assert version.lineage.job == job.id
    assert states(registry, job) == ["queued", "running", "evaluating", "succeeded"]


def test_a_job_publishes_once(registry, new_job, make_folder, lineage):
    job = new_job()
    registry.claim_job()
    first = registry.publish("de-strings", make_folder("1"), lineage, job_id=job.id)
    assert registry.publish("de-strings", make_folder("2"), lineage, job_id=job.id) == first
    assert registry.counts().versions == 1
    registry.delete_version("de-strings", 1)
    with pytest.raises(ConflictError, match="deleted"):
        registry.publish("de-strings", make_folder("2"), lineage, job_id=job.id)


def test_a_cancelled_job_publishes_nothing(registry, data_dir, new_job, make_folder, lineage):
    job = new_job()
    registry.request_cancel(job.id)
    with pytest.raises(ConflictError, match="cancelled"):
        registry.publish("de-strings", make_folder(), lineage, job_id=job.id)
    assert registry.adapters() == []
    assert list((data_dir / "artefacts").rglob("*.safetensors")) == []


def test_jobs_start_in_the_order_they_came(registry, new_job):
    queued = [new_job().id for _ in range(3)]
    assert [registry.claim_job().id for _ in range(3)] == queued
    assert registry.claim_job() is None
    assert [job.id for job in registry.jobs()] == queued[::-1]
    assert [job.id for job in registry.jobs(limit=2)] == queued[:0:-1]
    assert registry.jobs(state=JobState.queued) == []


def test_cancelling(registry, new_job):
    queued, running = new_job(), new_job()
    assert registry.request_cancel(queued.id)
    assert registry.job(queued.id).state is JobState.cancelled
    assert registry.claim_job().id == running.id
    assert not registry.request_cancel(running.id)
    flagged = registry.job(running.id)
    assert (flagged.state, flagged.cancel_requested) == (JobState.running, True)
    assert registry.update_job(running.id, state=JobState.cancelled).finished_at is not None
    assert not registry.request_cancel(running.id)
    assert registry.job(running.id).state is JobState.cancelled


def test_a_failed_job_is_resumed_with_its_folder(registry, new_job):
    job, other = new_job(), new_job()
    registry.claim_job()
    (job.folder / "checkpoint").write_text("step 3")
    failed = registry.update_job(job.id, state=JobState.failed, error="out of memory")
    assert (failed.error, failed.state) == ("out of memory", JobState.failed)

    resumed = registry.resume_job(job.id)

    assert (resumed.state, resumed.error, resumed.finished_at) == (JobState.queued, None, None)
    assert (resumed.folder / "checkpoint").read_text() == "step 3"
    assert [registry.claim_job().id for _ in range(2)] == [other.id, job.id]
    assert registry.job(job.id).attempts == 2


def test_a_job_that_was_to_stop_is_not_stopped_after_it_was_resumed(registry, new_job):
    job = new_job()
    registry.claim_job()
    registry.request_cancel(job.id)
    registry.update_job(job.id, state=JobState.cancelled)
    assert not registry.resume_job(job.id).cancel_requested


def test_jobs_of_a_dead_server_are_queued_again(registry, data_dir, database_url, new_job):
    running, stopping, waiting = new_job(), new_job(), new_job()
    registry.claim_job()
    registry.claim_job()
    registry.update_job(running.id, state=JobState.evaluating)
    registry.request_cancel(stopping.id)

    restarted = Registry.open(data_dir, database_url)
    recovered = {job.id: job.state for job in restarted.recover_jobs()}

    assert recovered == {running.id: JobState.queued, stopping.id: JobState.cancelled}
    assert restarted.events(running.id)[-1].data == {"state": "queued", "reason": "the server that ran it ended"}
    assert [restarted.claim_job().id for _ in range(2)] == [running.id, waiting.id]
    restarted.close()


@pytest.mark.parametrize("target", [JobState.evaluating, JobState.succeeded])
def test_a_queued_job_can_not_skip_ahead(registry, new_job, target):
    job = new_job()
    with pytest.raises(ConflictError, match=f"is queued and can't become {target}"):
        registry.update_job(job.id, state=target, options={"r": 9})
    assert registry.job(job.id) == job


def test_a_finished_job_is_finished(registry, new_job, make_folder, lineage):
    job = new_job()
    registry.claim_job()
    registry.publish("de-strings", make_folder(), lineage, job_id=job.id)
    for change in (
        lambda: registry.update_job(job.id, state=JobState.running),
        lambda: registry.request_cancel(job.id),
        lambda: registry.resume_job(job.id),
    ):
        with pytest.raises(ConflictError):
            change()
    assert registry.update_job(job.id, state=JobState.succeeded).version == "de-strings@1"


def test_events_are_numbered_and_read_from_anywhere(registry, new_job):
    job, other = new_job(), new_job()
    for step in range(5):
        registry.add_event(job.id, "metrics", {"step": step})
    registry.add_event(other.id, "log", {"text": "x"})
    assert [event.seq for event in registry.events(job.id)] == [1, 2, 3, 4, 5, 6]
    assert [event.data["step"] for event in registry.events(job.id, after=4)] == [3, 4]
    assert [event.seq for event in registry.events(job.id, after=1, limit=2)] == [2, 3]
    with pytest.raises(UnknownError):
        registry.events("nothing")


def test_jobs_that_can_not_work_are_refused(registry, new_job, dataset, make_folder, lineage):
    registry.publish("qa", make_folder(), dataclasses.replace(lineage, task="domain-qa"))
    with pytest.raises(ConflictError):
        new_job("qa")
    with pytest.raises(InvalidNameError):
        new_job("base")
    with pytest.raises(ConflictError, match="translation"):
        registry.create_job(task="domain-qa", adapter="x", dataset=dataset, method="lora", options={})
    with pytest.raises(UnknownError, match="dataset"):
        registry.create_job(task="translation", adapter="x", dataset="0", method="lora", options={})
    assert registry.jobs() == []


_CLAIM_ALL = """
import sys
from pathlib import Path
from graft_server.registry import Registry

registry = Registry.open(Path(sys.argv[1]), sys.argv[2] or None)
print("ready", flush=True)
sys.stdin.readline()
while job := registry.claim_job():
    print(job.id, flush=True)
"""


def test_processes_that_claim_at_the_same_time_never_get_the_same_job(registry, data_dir, database_url, new_job):
    created = {new_job().id for _ in range(30)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", _CLAIM_ALL, str(data_dir), database_url or ""]
    workers = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    claimed = [line for worker in workers for line in worker.communicate(timeout=60)[0].split()]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert len(claimed) == len(created)
    assert set(claimed) == created
    assert all(job.attempts == 1 for job in registry.jobs())
