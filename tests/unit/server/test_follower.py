"""What another server of the same registry changes is acted on here within a second or two."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from graft_client.schemas.jobs import JobState
from graft_server.follower import Follower
from graft_server.registry import Registry
from graft_server.registry.errors import UnavailableError
from graft_server.services import Services
from support.serving import RecordedJobs, engine_of, publish
from support.waiting import until

#: Within what a server is to have followed.
soon = partial(until, within=2.0)


@pytest.fixture
async def elsewhere(services: Services) -> AsyncIterator[Registry]:
    """The registry as another server has it, while this one follows."""
    other = Registry.open(services.settings.data_dir)
    following = asyncio.create_task(Follower(services.registry, services.follow).run())
    yield other
    following.cancel()
    other.close()


async def test_pins_of_another_server_are_kept_and_let_go(
    services: Services, elsewhere: Registry, tmp_path: Path
) -> None:
    engine = engine_of(services)
    for name in ("de", "fr"):
        publish(services, tmp_path, name)
        elsewhere.pin(name, 1)
    await soon(lambda: {source.ref for source in engine.pinned.values()} == {"de@1", "fr@1"})
    elsewhere.unpin("de", 1)
    await soon(lambda: {source.ref for source in engine.pinned.values()} == {"fr@1"})
    elsewhere.delete_version("fr", 1)
    await soon(lambda: not engine.pinned)


async def test_what_can_not_be_pinned_here_is_told_and_tried_once(
    services: Services, elsewhere: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine_of(services).unloadable = "de@1: the files are gone"
    publish(services, tmp_path, "de")
    elsewhere.pin("de", 1)
    await soon(lambda: dict(services.pins.failures) == {"de@1": "de@1: the files are gone"})
    publish(services, tmp_path, "de")
    await asyncio.sleep(1)
    assert [record.message for record in caplog.records if "de@1 could not be loaded" in record.message] != []
    assert len([record for record in caplog.records if "could not be loaded" in record.message]) == 1
    elsewhere.unpin("de", 1)
    await soon(lambda: not services.pins.failures)


async def test_a_job_that_was_queued_elsewhere_is_looked_at(
    services: Services, elsewhere: Registry, tmp_path: Path
) -> None:
    jobs = services.jobs
    assert isinstance(jobs, RecordedJobs)
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "rows.jsonl").write_text("{}")
    dataset = elsewhere.add_dataset(task="translation", format="jsonl", rows=1, bad_rows=0, folder=rows)
    await asyncio.sleep(1.2)
    before = jobs.woken
    job = elsewhere.create_job(task="translation", adapter="de", dataset=dataset.id, method="lora", options={})
    await soon(lambda: jobs.woken > before)
    # What a job at work notes all the time wakes nobody.
    elsewhere.update_job(job.id, state=JobState.running)
    await asyncio.sleep(1.2)
    before = jobs.woken
    elsewhere.add_event(job.id, "log", {"message": "a step"})
    await asyncio.sleep(1.2)
    assert jobs.woken == before


async def test_following_outlasts_a_database_that_is_away_and_a_failure(
    services: Services, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    acted: list[int] = []

    async def act() -> None:
        acted.append(1)
        if len(acted) == 1:
            raise RuntimeError("no")

    def away() -> int:
        raise UnavailableError("postgresql://host/graft")

    following = asyncio.create_task(Follower(services.registry, act).run())
    await soon(lambda: len(acted) == 1)
    with monkeypatch.context() as patch:
        patch.setattr(services.registry, "newest_change", away)
        await asyncio.sleep(1.2)
    # What happened meanwhile is unknown, so it looks.
    await soon(lambda: len(acted) == 2)
    following.cancel()
    assert len([record for record in caplog.records if "changes of other servers can't be seen" in record.message]) == 1
    assert "the registry's database answers again" in caplog.text
