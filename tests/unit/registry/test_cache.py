"""The cache in front of an object store, and what goes wrong between the two."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from graft_server.registry import CorruptArtefactError, Registry, RegistryError, StorageFullError
from graft_server.registry import cache as cache_module
from graft_server.registry.errors import InvalidStoreError, NotFetchedError, StoreUnavailableError
from graft_server.registry.objects import ObjectStore
from support.object_stores import s3_server
from support.processes import eventually

MIB = 1 << 20
Open = Callable[..., Registry]


@pytest.fixture
def url() -> str:
    """A store in memory, where it need not be a real one."""
    return f"memory://{secrets.token_hex(4)}/prefix"


@pytest.fixture
def driver() -> Any:
    """For looking at that store, and spoiling it."""
    return fsspec.filesystem("memory")


@pytest.fixture
def open_registry(tmp_path: Path) -> Iterator[Open]:
    """``open_registry(url, "a")`` opens the one registry with the data folder ``a``."""
    opened: list[Registry] = []

    def make(url: str, name: str | Path, **options: int) -> Registry:
        opened.append(Registry.open(tmp_path / name, f"sqlite:///{tmp_path / 'registry.db'}", url, **options))
        return opened[-1]

    yield make
    for registry in opened:
        registry.close()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The key of each folder that is fetched."""
    keys: list[str] = []
    fetch = ObjectStore.fetch

    def counting(self: ObjectStore, key: str, digest: str, target: Path) -> None:
        keys.append(key)
        fetch(self, key, digest, target)

    monkeypatch.setattr(ObjectStore, "fetch", counting)
    return keys


def publish(registry: Registry, make_folder, lineage, name: str, size: int = 0) -> None:
    folder = make_folder(name)
    if size:
        (folder / "adapter_model.safetensors").write_bytes(name.encode() + bytes(size))
    registry.publish(name, folder, lineage)


def read(registry: Registry, name: str) -> str:
    with registry.files(registry.resolve(name)) as folder:
        return (folder / "adapter_model.safetensors").read_bytes().rstrip(b"\0").decode()


def cached(registry: Registry) -> set[str]:
    """The adapters whose files are on this machine."""
    return {adapter.name for adapter in registry.adapters() if adapter.latest.path.exists()}


def test_while_the_store_is_away_what_is_cached_is_read(open_registry, make_folder, lineage):
    with s3_server() as server:
        url = server.new_url()
        first, second = open_registry(url, "a"), open_registry(url, "b")
        for name in ("known", "unknown"):
            publish(first, make_folder, lineage, name)
        assert read(second, "known") == "known"
        server.stop()

        assert read(second, "known") == "known"
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match=url):
                read(second, "unknown")
        with pytest.raises(StoreUnavailableError):
            publish(second, make_folder, lineage, "new")
        assert "new" not in {adapter.name for adapter in second.adapters()}
        second.delete_version("unknown", 1)
        second.close()
        assert read(open_registry(url, "b"), "known") == "known"


@pytest.mark.parametrize("spoiled", ["files/adapter_model.safetensors", "files/adapter_config.json", "manifest.json"])
@pytest.mark.parametrize("content", [b"", b"weightx", None], ids=["truncated", "tampered", "gone"])
def test_what_is_not_what_was_stored_is_never_read(
    open_registry, driver, url, make_folder, lineage, spoiled, content, monkeypatch
):
    monkeypatch.setattr(cache_module, "_PAUSE", 0)
    first, second = open_registry(url, "a"), open_registry(url, "b")
    publish(first, make_folder, lineage, "weights")
    [file] = [name for name in driver.find(url) if name.endswith(spoiled)]
    before = driver.cat_file(file)
    if content is None:
        driver.rm_file(file)
    else:
        driver.pipe_file(file, content)

    with pytest.raises(CorruptArtefactError, match=r"restore|publish it again"):
        read(second, "weights")
    assert cached(second) == set()
    assert read(first, "weights") == "weights"
    driver.pipe_file(file, before)
    assert read(second, "weights") == "weights"


def test_a_damaged_entry_of_the_cache_is_fetched_again_where_it_is_verified(open_registry, url, make_folder, lineage):
    registry = open_registry(url, "a")
    publish(registry, make_folder, lineage, "x")
    version = registry.resolve("x")
    (version.path / "adapter_model.safetensors").write_text("rotten")
    registry.verify(version)
    assert read(registry, "x") == "x"


def test_what_nobody_holds_goes_the_one_used_longest_ago_first(open_registry, url, make_folder, lineage, fetched):
    room = 3 * MIB + MIB // 2
    first, second = open_registry(url, "a"), open_registry(url, "b", cache_bytes=room)
    for name in "uvwxy":
        publish(first, make_folder, lineage, name, MIB)
    with second.files(second.resolve("u")):
        for name in "vwvxy":
            assert read(second, name) == name
        eventually(lambda: cached(second) == {"u", "x", "y"}, what="room was made")
    assert len(fetched) == 5
    assert read(second, "u") == "u"
    assert len(fetched) == 5
    # The order outlasts a restart.
    second.close()
    third = open_registry(url, "b", cache_bytes=room)
    assert read(third, "w") == "w"
    eventually(lambda: cached(third) == {"u", "w", "y"}, what="room was made")


def test_many_who_want_the_same_files_fetch_them_once(open_registry, url, make_folder, lineage, fetched):
    first, second = open_registry(url, "a"), open_registry(url, "b")
    publish(first, make_folder, lineage, "x", MIB)
    start = threading.Barrier(16)

    def reader(_: int) -> str:
        start.wait()
        return read(second, "x")

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(reader, range(16))) == {"x"}
    assert len(fetched) == 1


def test_who_does_not_wait_is_told_to_while_a_fetch_is_under_way(open_registry, url, make_folder, lineage, monkeypatch):
    first, second = open_registry(url, "a"), open_registry(url, "b")
    for name in ("slow", "broken"):
        publish(first, make_folder, lineage, name)
    slow, broken = second.resolve("slow"), second.resolve("broken")
    go_on, fetch = threading.Event(), ObjectStore.fetch

    def held_up(self: ObjectStore, key: str, digest: str, target: Path) -> None:
        if key.endswith(broken.digest):
            raise StoreUnavailableError("memory://", "away")
        go_on.wait(20)
        fetch(self, key, digest, target)

    monkeypatch.setattr(ObjectStore, "fetch", held_up)
    with pytest.raises(NotFetchedError) as missing, second.files(slow, wait=False):
        pass
    under_way = second.fetch(missing.value)
    with pytest.raises(StoreUnavailableError):
        read(second, "broken")
    # The store is taken to be away, but what has begun may still come.
    for _ in range(2):
        with pytest.raises(NotFetchedError), second.files(slow, wait=False):
            pass
        with pytest.raises(StoreUnavailableError), second.files(broken, wait=False):
            pass
    go_on.set()
    under_way.result()
    with second.files(slow, wait=False) as folder:
        assert (folder / "adapter_model.safetensors").read_text() == "slow"


_STUCK = """
import hashlib, sys, time
from pathlib import Path
from graft_server.registry import Registry
registry = Registry.open(Path(sys.argv[1]), *sys.argv[2:])
def stuck(*_):
    print("half", flush=True)
    time.sleep(60)
hashlib.file_digest = stuck
with registry.files(registry.resolve("x")):
    print("done", flush=True)
"""


def test_a_process_killed_in_a_fetch_leaves_nothing_behind(open_registry, s3, tmp_path, make_folder, lineage):
    url = s3.new_url()
    publish(open_registry(url, "a"), make_folder, lineage, "x")
    data, staging = tmp_path / "b", tmp_path / "b" / "cache" / "staging"
    command = [sys.executable, "-c", _STUCK, data, f"sqlite:///{tmp_path / 'registry.db'}", url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"half\n"
    process.kill()
    process.wait()
    assert any(staging.rglob("adapter_config.json"))

    registry = open_registry(url, "b")
    assert not any(staging.iterdir())
    assert cached(registry) == set()
    assert read(registry, "x") == "x"


_FORGOTTEN = """
import concurrent.futures, gc, sys
from pathlib import Path
from graft_server.registry import Registry
forgetful, other = (Registry.open(Path(sys.argv[1]) / name, *sys.argv[2:4], cache_bytes=1) for name in "ab")
made = concurrent.futures.Future.__init__
def collecting(self):
    gc.collect()
    made(self)
concurrent.futures.Future.__init__ = collecting
gc.disable()
for name in ("x", "y"):
    holding = [forgetful.files(forgetful.resolve(name))]
    holding[0].__enter__()
    holding.append(holding)
del holding
for name in ("x", "y"):
    with other.files(other.resolve(name)):
        pass
"""


def test_holds_that_end_in_a_garbage_collection_wait_for_nobody(open_registry, s3, tmp_path, make_folder, lineage):
    """Whoever forgets to let go must not lock up the thread that happens to collect it: here it starts a fetch."""
    url = s3.new_url()
    registry = open_registry(url, "c")
    for name in ("x", "y"):
        publish(registry, make_folder, lineage, name)
    command = [sys.executable, "-c", _FORGOTTEN, tmp_path, f"sqlite:///{tmp_path / 'registry.db'}", url]
    subprocess.run(command, check=True, timeout=60)


def test_a_full_disk_makes_room_for_what_is_needed_now(open_registry, url, small_disk, make_folder, lineage):
    first, second = open_registry(url, "a"), open_registry(url, small_disk / "data")
    for name, size in (("v", MIB), ("w", MIB), ("x", MIB * 5 // 4), ("large", 3 * MIB)):
        publish(first, make_folder, lineage, name, size)
    for name in "vwx":
        assert read(second, name) == name
    assert cached(second) == {"x"}
    with second.files(second.resolve("x")), pytest.raises(StorageFullError, match="free some"):
        read(second, "large")
    assert cached(second) == {"x"}
    assert not any((small_disk / "data" / "cache" / "staging").iterdir())
    assert read(second, "v") == "v"


def test_garbage_is_what_no_row_names_and_nobody_writes(open_registry, driver, url, make_folder, lineage, monkeypatch):
    for path in ("notes.txt", "other/program/file"):
        driver.pipe_file(f"{url}/{path}", b"not ours")
    registry = open_registry(url, "a")
    publish(registry, make_folder, lineage, "x")
    rows = registry.add_dataset(task="translation", format="jsonl", rows=1, bad_rows=0, folder=make_folder("rows"))
    kept = set(driver.find(url))
    left = [f"{url}/artefacts/ab/ab{'0' * 62}/files/half", f"{url}/datasets/0123/manifest.json"]
    for file in left:
        driver.pipe_file(file, b"left")

    assert registry.collect_objects() == []
    monkeypatch.setattr(cache_module, "_ABANDONED", timedelta(0))
    assert len(registry.collect_objects(dry_run=True)) == 2
    driver.invalidate_cache()
    assert len(driver.find(url)) == len(kept) + 2
    assert len(registry.collect_objects()) == 2
    driver.invalidate_cache()
    assert set(driver.find(url)) == kept
    assert read(open_registry(url, "b"), "x") == "x"
    registry.delete_version("x", 1)
    registry.delete_dataset(rows.id)
    driver.invalidate_cache()
    left = [name.partition("/prefix/")[2] for name in driver.find(url)]
    assert sorted(left) == ["notes.txt", "other/program/file", "registry.json"]


def test_what_is_taken_for_garbage_while_it_is_published_is_stored_again(
    open_registry, url, make_folder, lineage, monkeypatch
):
    first, second = open_registry(url, "a"), open_registry(url, "b")
    monkeypatch.setattr(cache_module, "_ABANDONED", timedelta(0))
    put = ObjectStore.put
    collected = []

    def overtaken(self: ObjectStore, *arguments: object) -> None:
        put(self, *arguments)
        if not collected:
            collected.extend(second.collect_objects())

    monkeypatch.setattr(ObjectStore, "put", overtaken)
    publish(first, make_folder, lineage, "x")
    assert len(collected) == 1
    assert read(second, "x") == "x"


@pytest.mark.parametrize("wrong", ["s4://bucket/prefix", "s3:bucket", "bucket/prefix"])
def test_a_url_that_means_nothing_is_refused(open_registry, wrong):
    with pytest.raises(InvalidStoreError, match="artefacts_url"):
        open_registry(wrong, "a")


def test_a_bucket_that_is_not_there_is_told(open_registry, s3, make_folder, lineage):
    with pytest.raises(RegistryError, match="no such bucket"):
        publish(open_registry("s3://nowhere/prefix", "a"), make_folder, lineage, "x")


def test_a_version_that_can_not_be_read_can_be_deleted(open_registry, driver, url, make_folder, lineage):
    first, second = open_registry(url, "a"), open_registry(url, "b")
    publish(first, make_folder, lineage, "x")
    driver.rm(url, recursive=True)
    with pytest.raises(CorruptArtefactError, match="gone"):
        read(second, "x")
    second.delete_version("x", 1)
    assert second.adapters() == []
