"""Uploaded files as they came, each under an id: input and output of batches, and rows that jobs make datasets of."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_server.registry.artefacts import ArtefactStore
from graft_server.registry.database import Database
from graft_server.registry.documents import DocumentRecord, Documents, insert, record_of
from graft_server.registry.errors import ConflictError, UnknownError
from graft_server.registry.sharing import Sharing

_CONTENT = "content"


@dataclass(frozen=True, slots=True)
class KeptFile:
    """Where a file's folder is read while ``Registry.files`` has it there, and the folder's digest."""

    path: Path
    digest: str

    @property
    def content(self) -> Path:
        return self.path / _CONTENT


class KeptFiles:
    """Files in the artefact store, with a document of kind ``file`` for each: its name, size in bytes and purpose.

    One that has expired is not there any more for anyone; its content goes with the next ``sweep``.
    """

    def __init__(self, database: Database, store: ArtefactStore, sharing: Sharing, documents: Documents) -> None:
        self._database = database
        self._store = store
        self._sharing = sharing
        self._documents = documents

    def add(
        self,
        source: Path,
        *,
        filename: str,
        purpose: str,
        identity: str | None = None,
        expires_at: int | None = None,
        like: DocumentRecord | None = None,
    ) -> DocumentRecord:
        """Keep a copy of a file until ``expires_at`` (seconds since 1970) or until it is removed. It belongs to whoever
        does so, or to whom a document ``like`` it belongs.

        Raises:
            StorageFullError: no space is left.
            StoreUnavailableError: the object store does not answer.
        """
        identity = identity or Documents.new_id("file")
        folder = self._store.kept_files / identity
        self._sharing.claim()
        with self._store.stage_file(source, _CONTENT) as staged:
            self._store.upload(staged, folder)
            data = {
                "filename": filename,
                "bytes": staged.size_bytes,
                "purpose": purpose,
                "expires_at": expires_at,
                "digest": staged.digest,
            }
            with self._store.placing(staged) as place, self._database.write() as session:
                place(folder)
                return record_of(insert(session, "file", data, identity=identity, like=like))

    def get(self, identity: str) -> DocumentRecord:
        """Raises:
        UnknownError: there is none, or no more.
        """
        record = self._documents.get("file", identity)
        if _expired(record.data):
            raise UnknownError("file", identity)
        return record

    def list(
        self,
        *,
        after: str | None = None,
        limit: int | None = None,
        oldest_first: bool = False,
        purpose: str | None = None,
    ) -> list[DocumentRecord]:
        """Those of ``Documents.list``, of one purpose where one is named.

        Raises:
            UnknownError: there is no file ``after``.
        """

        def keep(data: dict[str, Any]) -> bool:
            return not _expired(data) and purpose in (None, data["purpose"])

        return self._documents.list("file", after=after, limit=limit, oldest_first=oldest_first, keep=keep)

    def stored(self, identity: str) -> KeptFile:
        """What ``Registry.files`` has to be asked for to read a file. A batch at work reads one that has expired, too.

        Raises:
            UnknownError: there is no such file.
            ConflictError: it lies with another server of this registry.
        """
        record, folder = self._documents.get("file", identity), self._store.kept_files / identity
        if "digest" not in record.data or not self._store.reads(folder):
            raise ConflictError(f"file {identity!r} lies with another server of this registry; ask that one")
        return KeptFile(folder, record.data["digest"])

    def remove(self, identity: str) -> None:
        """Raises:
        UnknownError: there is none.
        """
        folder = self._store.kept_files / identity
        with self._store.lock():
            self._documents.remove("file", identity)
            self._store.remove(folder)
            self._sharing.discard([folder])

    def sweep(self) -> None:
        """Remove what has expired."""
        for record in self._documents.list("file", keep=_expired):
            with contextlib.suppress(UnknownError):  # another server does the same
                self.remove(record.id)

    def adopt(self, folder: Path) -> None:
        """Bring in the files that earlier releases kept in a folder of the data folder, by their ids.

        Raises:
            StorageFullError: no space is left.
            StoreUnavailableError: the object store does not answer.
        """
        if not folder.is_dir():
            return
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            record = self._documents.by_ids("file", [path.name]).get(path.name)
            if record is not None and "digest" not in record.data:
                self._adopt(path)
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another process does the same
            folder.rmdir()

    def _adopt(self, path: Path) -> None:
        target = self._store.kept_files / path.name
        self._sharing.claim()
        with self._store.stage_file(path, _CONTENT) as staged:
            self._store.upload(staged, target)
            with self._store.placing(staged) as place:
                place(target)
                self._documents.update("file", path.name, digest=staged.digest)


def _expired(data: dict[str, Any]) -> bool:
    return data["expires_at"] is not None and data["expires_at"] <= time.time()
