"""Checkpoints in the store that servers share: found by whoever takes a job over, and gone when nobody needs them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import fsspec
import pytest

from graft_client.schemas.jobs import JobState
from graft_server.registry import Lineage, Registry
from graft_server.registry import cache as cache_module
from graft_server.registry import jobs as jobs_module
from graft_server.registry.errors import LostClaimError, StoreUnavailableError
from graft_server.registry.objects import ObjectStore
from graft_server.registry.records import JobRecord


@pytest.fixture(params=["folder", "objects"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store of either kind."""
    kinds = {"folder": (tmp_path / "shared").as_uri(), "objects": f"memory://{secrets.token_hex(4)}/prefix"}
    return kinds[request.param]


@pytest.fixture
def pair(tmp_path: Path, shared: str) -> Iterator[list[Registry]]:
    """Two servers of one registry."""
    opened = [Registry.open(tmp_path / name, f"sqlite:///{tmp_path / 'registry.db'}", shared) for name in ("a", "b")]
    yield opened
    for registry in opened:
        registry.close()


@pytest.fixture
def job(pair: list[Registry], make_folder) -> JobRecord:
    """A job at work on the first server, whose claim runs out at once."""
    return claimed(pair[0], make_folder)


def claimed(registry: Registry, make_folder) -> JobRecord:
    rows = registry.add_dataset(task="translation", format="jsonl", rows=3, bad_rows=0, folder=make_folder("rows"))
    registry.create_job(task="translation", adapter="de", dataset=rows.id, method="lora", options={})
    found = registry.claim_job(lease=0.0)
    assert found is not None
    return found


def checkpoint(job: JobRecord, step: int, text: str = "") -> Path:
    folder = job.folder / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer.json").write_text(text or f"step {step}")
    return folder


def stored(shared: str, job: JobRecord) -> set[str]:
    """The checkpoints of a job that lie in the store, by name."""
    driver, root = fsspec.core.url_to_fs(shared)
    driver.invalidate_cache()
    prefix = f"{root}/checkpoints/{job.id}/"
    return {path.removeprefix(prefix).split(".")[0] for path in driver.find(prefix)} if driver.exists(prefix) else set()


def test_who_takes_a_job_over_finds_the_newest(pair: list[Registry], job: JobRecord, shared: str) -> None:
    first, second = pair
    for step in (10, 20, 100):
        first.checkpoints.keep(job, checkpoint(job, step))
        assert stored(shared, job) == {f"step-{step:08d}"}
    taken = second.claim_job()
    assert taken is not None
    assert taken.folder != job.folder
    into = taken.folder / "checkpoints"
    assert second.checkpoints.fetch(taken, into) == "step-00000100"
    assert (into / "step-00000100" / "trainer.json").read_text() == "step 100"
    assert [path.name for path in into.iterdir()] == ["step-00000100"]
    # It has that one now, and so does the first server, if the job comes back to it.
    assert second.checkpoints.fetch(taken, into) is None
    assert first.checkpoints.fetch(job, job.folder / "checkpoints") is None
    second.checkpoints.keep(taken, checkpoint(taken, 110))
    assert first.checkpoints.fetch(job, job.folder / "checkpoints") == "step-00000110"


def test_who_has_lost_a_job_changes_nothing(pair: list[Registry], job: JobRecord, shared: str, monkeypatch) -> None:
    first, second = pair
    taken = second.claim_job()
    assert taken is not None
    second.checkpoints.keep(taken, checkpoint(taken, 20))
    with pytest.raises(LostClaimError):
        first.checkpoints.keep(job, checkpoint(job, 30))
    # Also where it learns that only once its own is there.
    looked: list[JobRecord] = []
    monkeypatch.setattr(
        first.checkpoints,
        "_check_claim",
        lambda job, real=first.checkpoints._check_claim: real(job) if looked else looked.append(job),
    )
    with pytest.raises(LostClaimError):
        first.checkpoints.keep(job, checkpoint(job, 40))
    assert looked
    assert stored(shared, job) == {"step-00000020"}


def test_a_damaged_one_is_not_used(pair: list[Registry], job: JobRecord, shared: str) -> None:
    first, second = pair
    first.checkpoints.keep(job, checkpoint(job, 10))
    driver, root = fsspec.core.url_to_fs(shared)
    (damaged,) = (path for path in driver.find(f"{root}/checkpoints") if path.endswith("trainer.json"))
    driver.pipe_file(damaged, b"step 11")
    assert second.checkpoints.fetch(job, second_folder := job.folder.with_name("elsewhere")) is None
    assert list(second_folder.iterdir()) == []


def test_nothing_is_left_of_a_job_that_is_over(pair: list[Registry], job: JobRecord, shared: str, make_folder) -> None:
    first, _ = pair
    first.checkpoints.keep(job, checkpoint(job, 10))
    first.publish("de", make_folder(), lineage_of(job), job_id=job.id, claim=job.claim)
    first.checkpoints.drop(job)
    assert stored(shared, job) == set()
    # Not even by somebody who sends one afterwards.
    with pytest.raises(LostClaimError):
        first.checkpoints.keep(job, checkpoint(job, 20))
    assert stored(shared, job) == set()


def test_what_nobody_removed_is_garbage(
    pair: list[Registry], job: JobRecord, shared: str, make_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    monkeypatch.setattr(cache_module, "_ABANDONED", timedelta(0))
    first.checkpoints.keep(job, checkpoint(job, 10))

    def collected() -> set[str]:
        gone = second.collect_garbage() + second.collect_objects()
        return {folder.name.split(".")[0] for folder in gone}

    assert collected() == set()
    first.update_job(job.id, state=JobState.cancelled, claim=job.claim)
    assert collected() == set()
    assert stored(shared, job) == {"step-00000010"}
    monkeypatch.setattr(jobs_module, "_RESUMABLE", timedelta(0))
    assert collected() == {"step-00000010"}
    assert stored(shared, job) == set()
    # A server that was killed between the last version and the checkpoints.
    again = claimed(first, make_folder)
    first.checkpoints.keep(again, checkpoint(again, 10))
    monkeypatch.undo()
    monkeypatch.setattr(cache_module, "_ABANDONED", timedelta(0))
    first.publish("de", make_folder(), lineage_of(again), job_id=again.id, claim=again.claim)
    assert collected() == {"step-00000010"}
    assert stored(shared, again) == set()


def test_a_store_that_is_away_leaves_garbage_and_fails_nothing(tmp_path: Path, make_folder, monkeypatch) -> None:
    registry = Registry.open(tmp_path / "a", artefacts_url=f"memory://{secrets.token_hex(4)}/prefix")
    job = claimed(registry, make_folder)
    registry.checkpoints.keep(job, checkpoint(job, 10))

    def away(self: ObjectStore, key: str) -> None:
        raise StoreUnavailableError("memory", "away")

    monkeypatch.setattr(ObjectStore, "_list", away)
    registry.checkpoints.drop(job)
    with pytest.raises(StoreUnavailableError):
        registry.checkpoints.fetch(job, tmp_path / "elsewhere")
    registry.close()


def test_without_a_shared_store_nothing_is_kept(tmp_path: Path, make_folder) -> None:
    registry = Registry.open(tmp_path / "a")
    job = claimed(registry, make_folder)
    registry.checkpoints.keep(job, checkpoint(job, 10))
    assert registry.checkpoints.fetch(job, tmp_path / "elsewhere") is None
    registry.checkpoints.drop(job)
    assert not (tmp_path / "a" / "checkpoints").exists()
    registry.close()


def lineage_of(job: JobRecord) -> Lineage:
    return Lineage(task=job.task, method=job.method, rank=8, base_model="smollm2", base_fingerprint="f" * 64)
