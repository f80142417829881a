"""Kept documents and uploaded files: pages, changes, whose they are, and what a kill leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from graft_server.registry import ConflictError, Registry, UnknownError, documents
from graft_server.registry.artefacts import ArtefactStore
from graft_server.registry.documents import DocumentKind
from graft_server.registry.models import now
from graft_server.registry.visibility import Visibility, visible


@contextmanager
def acting_for(owner: str) -> Iterator[None]:
    """What a request of that tenant sees and makes."""
    token = visible.set(Visibility((f"{owner}.*",), owner))
    try:
        yield
    finally:
        visible.reset(token)


def upload(registry: Registry, folder: Path, content: str = "{}\n") -> str:
    source = folder / "staged.jsonl"
    source.write_text(content)
    return registry.kept_files.add(source, filename="rows.jsonl", purpose="batch").id


def test_documents_are_paged_in_both_orders(registry):
    ids = [registry.documents.add("batch", {"place": place}).id for place in range(5)]
    registry.documents.add("response", {"place": 9})
    assert [record.id for record in registry.documents.list("batch")] == ids[::-1]
    assert [record.id for record in registry.documents.list("batch", after=ids[3], limit=2)] == [ids[2], ids[1]]
    assert [record.id for record in registry.documents.list("batch", after=ids[2], oldest_first=True)] == ids[3:]
    even = registry.documents.list("batch", limit=2, keep=lambda data: data["place"] % 2 == 0)
    assert [record.id for record in even] == [ids[4], ids[2]]
    with pytest.raises(UnknownError, match="no batch"):
        registry.documents.list("batch", after="batch_unknown")


def test_a_document_is_changed_and_removed(registry):
    kept = registry.documents.add("batch", {"state": "new", "total": 3})
    registry.documents.update("batch", kept.id, state="done")
    assert registry.documents.get("batch", kept.id).data == {"state": "done", "total": 3}
    # One kind's id is nothing to another.
    with pytest.raises(UnknownError, match="no response"):
        registry.documents.remove("response", kept.id)
    registry.documents.remove("batch", kept.id)
    with pytest.raises(UnknownError, match="no batch"):
        registry.documents.get("batch", kept.id)


def test_the_oldest_go_and_a_look_is_bounded(registry, monkeypatch):
    def made(days_ago: float, kind: DocumentKind) -> str:
        moment = now() - timedelta(days=days_ago)
        monkeypatch.setattr(documents, "now", lambda: moment)
        identity = registry.documents.add(kind, {}).id
        monkeypatch.setattr(documents, "now", now)
        return str(identity)

    with acting_for("acme"):
        made(40, "response")
    batch = made(40, "batch")
    ids = [made(days, "response") for days in (35, 31, 29, 0)]
    month = timedelta(days=30)
    assert registry.documents.remove_old("response", month, limit=2) == 2
    assert [record.id for record in registry.documents.list("response")] == [ids[3], ids[2], ids[1]]
    assert [registry.documents.remove_old("response", month, limit=2) for _ in range(2)] == [1, 0]
    assert [record.id for record in registry.documents.list("response")] == [ids[3], ids[2]]
    assert [record.id for record in registry.documents.list("batch")] == [batch]


def test_an_owner_sees_their_own_documents_alone(registry, tmp_path):
    with acting_for("acme"):
        file = upload(registry, tmp_path)
    with acting_for("other"):
        assert registry.documents.list("file") == []
        assert registry.documents.by_ids("file", [file]) == {}
        for touch in (
            lambda: registry.documents.get("file", file),
            lambda: registry.documents.update("file", file, purpose="stolen"),
            lambda: registry.kept_files.remove(file),
            lambda: registry.documents.list("file", after=file),
        ):
            with pytest.raises(UnknownError):
                touch()
    with acting_for("acme"):
        assert registry.documents.get("file", file).data["purpose"] == "batch"
    assert [record.owner for record in registry.documents.list("file")] == ["acme"]


def content(registry: Registry, file: str) -> str:
    stored = registry.kept_files.stored(file)
    with registry.files(stored):
        return stored.content.read_text()


def test_a_file_is_kept_and_removed(registry, tmp_path):
    file = upload(registry, tmp_path, "äöü\n")
    data = dict(registry.documents.get("file", file).data)
    assert len(data.pop("digest")) == 64
    assert data == {"filename": "rows.jsonl", "bytes": 7, "purpose": "batch", "expires_at": None}
    assert content(registry, file) == "äöü\n"
    folder = registry.kept_files.stored(file).path
    registry.kept_files.remove(file)
    assert not folder.exists()
    with pytest.raises(UnknownError, match="no file"):
        registry.kept_files.stored(file)


def test_without_a_shared_store_contents_stay_with_their_server(registry, tmp_path, database_url):
    file = upload(registry, tmp_path)
    other = Registry(registry._database, ArtefactStore(tmp_path / "another"), "another")
    assert other.kept_files.get(file).id == file
    with pytest.raises(ConflictError, match="lies with another server"):
        other.kept_files.stored(file)
    assert content(registry, file) == "{}\n"


@pytest.mark.parametrize("database_url", [None], ids=["sqlite"])
def test_what_a_kill_left_goes_and_nothing_else(registry, data_dir, tmp_path):
    with acting_for("acme"):
        kept = upload(registry, tmp_path)
    # In its place, but its document was never written.
    halfway = registry.kept_files.stored(kept).path.with_name("file-halfway")
    halfway.mkdir()
    (halfway / "content").write_text("{}")
    registry.close()
    again = Registry.open(data_dir)
    assert content(again, kept) == "{}\n"
    assert not halfway.exists()
    again.close()


@pytest.mark.parametrize("database_url", [None], ids=["sqlite"])
def test_files_of_earlier_releases_are_brought_in(registry, data_dir, tmp_path):
    old = data_dir / "files"
    old.mkdir()
    data = {"filename": "a.jsonl", "bytes": 4, "purpose": "batch", "expires_at": None}
    with acting_for("acme"):
        file = registry.documents.add("file", data).id
    (old / file).write_text("old\n")
    (old / "file-gone").write_text("{}")
    registry.close()
    # With a store that was set meanwhile: it comes there at once.
    again = Registry.open(data_dir, None, (tmp_path / "shared").as_uri())
    assert content(again, file) == "old\n"
    assert again.kept_files.stored(file).path.is_relative_to(tmp_path / "shared")
    assert again.documents.get("file", file).owner == "acme"
    assert not old.exists()
    again.close()


def test_the_log_of_changes_has_no_contents(registry):
    kept = registry.documents.add("response", {"text": "private"})
    registry.documents.update("response", kept.id, text="still private")
    assert "private" not in repr(registry.audit())
