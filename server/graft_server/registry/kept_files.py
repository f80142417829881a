"""Uploaded files as they came, each under an id: input and output of batches, and rows that jobs make datasets of."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

from graft_server.registry.documents import DocumentRecord, Documents
from graft_server.registry.errors import ConflictError, UnknownError, storage_errors


class KeptFiles:
    """Files below ``root``, with a document of kind ``file`` for each: its name, size in bytes and purpose.

    One that has expired is not there any more for anyone; its content goes with the next ``sweep``.

    A file is flushed and in its place before its document is written, so that what a killed process leaves is a file
    that no document names: ``sweep`` removes those.
    """

    def __init__(self, root: Path, documents: Documents) -> None:
        self._root = root
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
        """Move a file of the same disk in, until ``expires_at`` (seconds since 1970) or until it is removed. It belongs
        to whoever does so, or to whom a document ``like`` it belongs.

        Raises:
            StorageFullError: no space is left.
        """
        identity = identity or Documents.new_id("file")
        target = self.path(identity)
        with storage_errors(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as stream:
                os.fsync(stream.fileno())
            source.replace(target)
        data = {"filename": filename, "bytes": target.stat().st_size, "purpose": purpose, "expires_at": expires_at}
        return self._documents.add("file", data, identity=identity, like=like)

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

    def content(self, identity: str) -> Path:
        """Where the content of a file lies. Contents stay with the server that took them in.

        Raises:
            UnknownError: there is no such file, or no more.
            ConflictError: it lies with another server of this registry.
        """
        self.get(identity)
        if not self.here(identity):
            raise ConflictError(f"file {identity!r} lies with another server of this registry; ask that one")
        return self.path(identity)

    def here(self, identity: str) -> bool:
        """Whether this server has the content of a file."""
        return self.path(identity).exists()

    def path(self, identity: str) -> Path:
        """Where the content of a file lies if this server has it."""
        return self._root / identity

    def remove(self, identity: str) -> None:
        """Raises:
        UnknownError: there is none.
        """
        self._documents.remove("file", identity)
        self.path(identity).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what has expired, and what no document names. Nothing may be adding files meanwhile."""
        if not self._root.is_dir():
            return
        for record in self._documents.list("file", keep=_expired):
            self.remove(record.id)
        known = {record.id for record in self._documents.list("file")}
        for path in self._root.iterdir():
            if path.name not in known:
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _expired(data: dict[str, Any]) -> bool:
    return data["expires_at"] is not None and data["expires_at"] <= time.time()
