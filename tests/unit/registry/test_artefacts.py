"""The artefact store: what it refuses, and what it removes."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import pickle
import subprocess
import zipfile
from pathlib import Path

import pytest

from graft_server.registry import ConflictError, RefusedArtefactError, Registry, StorageFullError
from graft_server.registry.errors import StoreUnavailableError


def folders(data_dir: Path) -> list[str]:
    """Everything that the store holds, the database aside."""
    kept = ("artefacts", "datasets", "jobs", "staging")
    return sorted(str(path.relative_to(data_dir)) for name in kept for path in (data_dir / name).rglob("*"))


def link_file(folder: Path) -> None:
    (folder / "weights.safetensors").symlink_to("/etc/hostname")


def link_folder(folder: Path) -> None:
    (folder / "sub").symlink_to("/etc")


def link_outside(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "x").symlink_to("../../../secret")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def pickle_by_name(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"anything")


def pickle_by_content(folder: Path) -> None:
    (folder / "innocent.safetensors").write_bytes(pickle.dumps({"w": [1]}))


def torch_archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / "innocent.safetensors", "w") as archive:
        archive.writestr("data.pkl", b"")


@pytest.mark.parametrize(
    "spoil", [link_file, link_folder, link_outside, pipe, pickle_by_name, pickle_by_content, torch_archive]
)
def test_unsafe_folders_are_refused_and_leave_nothing(registry, data_dir, make_folder, lineage, spoil):
    folder = make_folder()
    spoil(folder)
    with pytest.raises(RefusedArtefactError, match=str(folder)):
        registry.publish("x", folder, lineage)
    assert folders(data_dir) == []
    assert registry.counts().versions == 0


def test_missing_and_empty_folders_are_refused(registry, tmp_path, lineage):
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    with pytest.raises(RefusedArtefactError, match="no such folder"):
        registry.publish("x", tmp_path / "missing", lineage)
    with pytest.raises(RefusedArtefactError, match="no files"):
        registry.publish("x", tmp_path / "empty", lineage)


def test_the_digest_depends_on_names_and_content_alone(registry, tmp_path, lineage):
    for order in (("a", "b"), ("b", "a")):
        folder = tmp_path / "-".join(order)
        (folder / "sub").mkdir(parents=True)
        for name in order:
            (folder / "sub" / name).write_text(name)
    (tmp_path / "renamed" / "sub").mkdir(parents=True)
    (tmp_path / "renamed" / "sub" / "a").write_text("a")
    (tmp_path / "renamed" / "sub" / "c").write_text("b")
    published = [registry.publish("x", tmp_path / name, lineage) for name in ("a-b", "b-a", "renamed")]
    assert published[0].digest == published[1].digest != published[2].digest


def test_opening_removes_what_a_killed_process_left(registry, data_dir, database_url, make_folder, lineage):
    kept = registry.publish("x", make_folder(), lineage)
    orphans = [
        data_dir / "artefacts" / "ab" / ("ab" + "0" * 62),
        data_dir / "datasets" / "0123",
        data_dir / "jobs" / "4567",
        data_dir / "staging" / "89ab",
    ]
    for orphan in orphans:
        orphan.mkdir(parents=True)
        (orphan / "file").write_text("left over")

    assert sorted(registry.collect_garbage(dry_run=True)) == sorted(orphans)
    assert all(orphan.exists() for orphan in orphans)
    Registry.open(data_dir, database_url).close()

    assert not any(orphan.exists() for orphan in orphans)
    registry.verify(kept)


def test_staging_that_a_live_process_holds_is_left_alone(registry, data_dir):
    slot = data_dir / "staging" / "busy"
    slot.mkdir()
    with (slot / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert registry.collect_garbage() == []
        assert slot.exists()
    assert registry.collect_garbage() == [slot]


def test_nobody_waits_for_ever_for_who_holds_the_store(
    registry, data_dir, make_folder, lineage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("graft_server.registry.artefacts.LOCK_SECONDS", 0.2)
    folder = make_folder()
    with (data_dir / "store.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailableError, match="another process has held its lock"):
            registry.publish("x", folder, lineage)
    assert registry.publish("x", folder, lineage).ref == "x@1"


def test_a_new_database_does_not_take_old_files_for_orphans(registry, data_dir, make_folder, lineage):
    kept = registry.publish("x", make_folder(), lineage)
    registry.close()
    for file in data_dir.glob("registry.db*"):
        file.unlink()
    for _ in range(2):
        with pytest.raises(ConflictError, match="restore"):
            Registry.open(data_dir)
    assert (kept.path / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("failing_call", range(1, 7))
def test_a_full_disk_at_any_flush_changes_nothing(registry, data_dir, make_folder, lineage, monkeypatch, failing_call):
    first = registry.publish("x", make_folder("1"), lineage)
    before = folders(data_dir)
    calls = 0
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(StorageFullError, match="free some"):
            registry.publish("x", make_folder("2"), lineage)

    assert folders(data_dir) == before
    assert registry.resolve("x") == first
    assert registry.publish("x", make_folder("2"), lineage).version == 2


def test_a_really_full_disk_changes_nothing(small_disk, make_folder, lineage):
    registry = Registry.open(small_disk / "data")
    first = registry.publish("x", make_folder("1"), lineage)
    large = make_folder("large")
    (large / "adapter_model.safetensors").write_bytes(bytes(3 << 20))
    before = folders(small_disk / "data")

    with pytest.raises(StorageFullError):
        registry.publish("x", large, lineage)
    with pytest.raises(StorageFullError):
        registry.add_dataset(task="translation", format="jsonl", rows=1, bad_rows=0, folder=large)

    assert folders(small_disk / "data") == before
    assert registry.resolve("x") == first
    assert registry.publish("x", make_folder("2"), lineage).version == 2
    registry.close()


def fill_with_events(registry: Registry, job: str) -> int:
    """Append events until the disk is full; returns how many the job has."""
    for seq in itertools.count(2):
        try:
            registry.add_event(job, "log", {"text": "x" * 20_000})
        except StorageFullError:
            return seq - 1
    raise AssertionError


def test_a_database_without_space_keeps_what_it_has(small_disk, make_folder, lineage):
    registry = Registry.open(small_disk / "data")
    folder = make_folder()
    rows = registry.add_dataset(task="translation", format="jsonl", rows=1, bad_rows=0, folder=folder)
    job = registry.create_job(task="translation", adapter="x", dataset=rows.id, method="lora", options={})
    written = fill_with_events(registry, job.id)

    assert [event.seq for event in registry.events(job.id)] == list(range(1, written + 1))
    with pytest.raises(StorageFullError):
        registry.publish("x", folder, lineage)
    assert registry.adapters() == []
    assert registry.collect_garbage(dry_run=True) == []

    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert registry.publish("x", folder, lineage).version == 1
    registry.close()
