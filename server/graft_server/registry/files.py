"""Uploaded files as they came, each under an id: input and output of batches, and rows that jobs make datasets of."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from graft_server.registry.documents import DocumentRecord, Documents
from graft_server.registry.errors import storage_errors


class StoredFiles:
    """Files below ``root``, with a document of kind ``file`` for each: its name, size in bytes and purpose.

    A file is flushed and in its place before its document is written, so that what a killed process leaves is a file
    that no document names: ``sweep`` removes those.
    """

    def __init__(self, root: Path, documents: Documents) -> None:
        self._root = root
        self._documents = documents

    def add(self, source: Path, *, filename: str, purpose: str, identity: str | None = None) -> DocumentRecord:
        """Move a file of the same disk in.

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
        data = {"filename": filename, "bytes": target.stat().st_size, "purpose": purpose}
        return self._documents.add("file", data, identity=identity)

    def path(self, identity: str) -> Path:
        """Where the content of a file lies that ``Documents`` knows."""
        return self._root / identity

    def remove(self, identity: str) -> None:
        """Raises:
        UnknownError: there is none.
        """
        self._documents.remove("file", identity)
        self.path(identity).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what no document names. Nothing may be adding files meanwhile."""
        if not self._root.is_dir():
            return
        known = {record.id for record in self._documents.list("file")}
        for path in self._root.iterdir():
            if path.name not in known:
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
