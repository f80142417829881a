"""What every artefact store keeps to: the data folder, a shared folder, and object stores behind their cache."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from graft_server.registry import ConflictError, CorruptArtefactError, Registry, UnknownError
from graft_server.registry.visibility import Visibility, visible

Open = Callable[..., Registry]


@pytest.fixture(params=["data folder", "file", "memory", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    match request.param:
        case "data folder":
            return None
        case "file":
            return (tmp_path / "shared").as_uri()
        case "memory":
            return f"memory://{secrets.token_hex(4)}/prefix"
        case _:
            return request.getfixturevalue("s3").new_url()


@pytest.fixture
def open_registry(tmp_path: Path, store_url: str | None) -> Iterator[Open]:
    """``open_registry("a")`` opens the one registry as a server with the data folder ``a`` does. SQLite will do: the
    servers are in one process."""
    opened: list[Registry] = []
    database = f"sqlite:///{tmp_path / 'registry.db'}"

    def make(name: str = "data", url: str | None = store_url, **options: int) -> Registry:
        opened.append(Registry.open(tmp_path / name, database, url, **options))
        return opened[-1]

    yield make
    for registry in opened:
        registry.close()


def read(registry: Registry, ref: str) -> str:
    version = registry.resolve(ref)
    with registry.files(version) as folder:
        assert folder == version.path
        return (folder / "adapter_model.safetensors").read_text()


def test_what_was_published_is_read(open_registry, make_folder, lineage):
    registry = open_registry()
    published = registry.publish("x", make_folder("one"), lineage)
    nested = make_folder("two")
    (nested / "sub" / "deeper").mkdir(parents=True)
    (nested / "sub" / "deeper" / "ä b#?.json").write_text("{}")
    registry.publish("x", nested, lineage)
    rows = registry.add_dataset(task="translation", format="jsonl", rows=1, bad_rows=0, folder=make_folder("rows"))

    assert read(registry, "x@1") == "one"
    assert read(registry, "x@2") == "two"
    with registry.files(registry.resolve("x@2")) as folder:
        assert (folder / "sub" / "deeper" / "ä b#?.json").read_text() == "{}"
    with registry.files(rows) as folder:
        assert (folder / "adapter_model.safetensors").read_text() == "rows"
    registry.verify(published)


def keep(registry: Registry, source: Path, content: str) -> str:
    source.write_text(content)
    return registry.kept_files.add(source, filename="rows.jsonl", purpose="batch").id


def content(registry: Registry, file: str) -> str:
    stored = registry.kept_files.stored(file)
    with registry.files(stored):
        return stored.content.read_text()


def test_a_callers_file_is_read_by_every_server_until_it_is_removed(open_registry, tmp_path, store_url):
    first = open_registry("a")
    file, other = (keep(first, tmp_path / "rows", text) for text in ("one", "two"))
    assert content(first, file) == "one"
    first.collect_garbage()
    first.collect_objects()
    if store_url is None:
        first.kept_files.remove(file)
        assert not (first._store.kept_files / file).exists()
        return
    second = open_registry("b")
    second.collect_garbage()
    assert [content(second, each) for each in (file, other)] == ["one", "two"]
    first.kept_files.remove(file)
    with pytest.raises(UnknownError):
        content(second, file)
    third = open_registry("c")
    assert content(third, other) == "two"
    # As one reads it whose database is older than the store.
    third.documents.add("file", third.documents.get("file", other).data, identity=file)
    with pytest.raises((CorruptArtefactError, FileNotFoundError)):
        content(third, file)


def test_the_same_files_are_stored_once_and_go_with_the_last_version(open_registry, make_folder, lineage):
    registry = open_registry()
    first, second = (registry.publish(name, make_folder(), lineage) for name in ("x", "y"))
    assert first.path == second.path
    registry.delete_version("x", 1)
    assert read(registry, "y") == "weights"
    registry.delete_adapter("y")
    assert not second.path.exists()
    assert registry.publish("x", make_folder(), lineage).version == 2
    assert read(registry, "x") == "weights"


def test_what_was_deleted_is_no_longer_there_for_another_server(open_registry, make_folder, lineage, store_url):
    if store_url is None:
        pytest.skip("a data folder has one server")
    first, second = open_registry("a"), open_registry("b")
    first.publish("x", make_folder(), lineage)
    first.add_dataset(task="translation", format="jsonl", rows=1, bad_rows=0, folder=make_folder("rows"))
    version, [rows] = second.resolve("x"), second.datasets()
    assert read(second, "x") == "weights"
    first.delete_version("x", 1)
    first.delete_dataset(rows.id)
    second.collect_garbage()
    with pytest.raises((CorruptArtefactError, FileNotFoundError)), second.files(version) as folder:
        (folder / "adapter_model.safetensors").read_text()
    with pytest.raises((CorruptArtefactError, FileNotFoundError)), second.files(rows) as folder:
        (folder / "adapter_model.safetensors").read_text()


def test_files_of_the_data_folder_move_into_the_store_that_is_set_later(
    open_registry, tmp_path, make_folder, lineage, store_url
):
    before = open_registry("a", None)
    version = before.publish("x", make_folder(), lineage)
    rows = before.add_dataset(task="translation", format="jsonl", rows=1, bad_rows=0, folder=make_folder("rows"))
    file = keep(before, tmp_path / "rows", "one")
    before.close()
    after = open_registry("a")
    assert read(after, "x") == "weights"
    assert content(after, file) == "one"
    with after.files(after.dataset(rows.id)) as folder:
        assert (folder / "adapter_model.safetensors").read_text() == "rows"
    if store_url is not None:
        assert not version.path.exists()
        another = open_registry("b")
        assert (read(another, "x"), content(another, file)) == ("weights", "one")


def test_the_store_of_another_registry_is_refused(open_registry, tmp_path, make_folder, lineage, store_url):
    registry = open_registry("a")
    registry.publish("x", make_folder(), lineage)
    if store_url is not None:
        with pytest.raises(ConflictError, match="another"):
            Registry.open(tmp_path / "other", None, store_url)
        open_registry("b")
    assert read(registry, "x") == "weights"


def test_who_sees_a_part_deletes_no_files_of_others(open_registry, make_folder, lineage):
    registry = open_registry()
    for name in ("acme.x", "other.x"):
        registry.publish(name, make_folder(), lineage)
    token = visible.set(Visibility(("acme.*",), "acme"))
    try:
        registry.delete_version("acme.x", 1)
    finally:
        visible.reset(token)
    assert read(registry, "other.x") == "weights"
