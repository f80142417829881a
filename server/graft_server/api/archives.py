"""Folders on their way out: zip archives, written beside the uploads and gone once they have been sent."""

from __future__ import annotations

import asyncio
import os
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

from graft_server.registry.records import VersionRecord


def pack(
    files: Iterable[Path], staging: Path, *, documents: Mapping[str, str] | None = None, consume: bool = False
) -> Path:
    """A new archive under ``staging`` of the documents by their names and of the files. Blocking.

    With ``consume`` each file goes as soon as it is in: a large folder and its archive need not both lie on the disk.
    """
    staging.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(suffix=".zip", dir=staging)
    # Weights do not compress, so the archive only stores.
    with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for document, text in (documents or {}).items():
            archive.writestr(document, text)
        for path in files:
            archive.write(path, path.name)
            if consume:
                path.unlink()
    return Path(name)


class PassingFile(FileResponse):
    """A file that is gone however the response ends, also where the caller asked for a range that it does not have."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.to_thread(Path(self.path).unlink, missing_ok=True)


def archive_response(archive: Path, version: VersionRecord, suffix: str) -> FileResponse:
    """Send an archive that was made of a version, and delete it; ``suffix`` ends its file name."""
    return PassingFile(
        archive,
        media_type="application/zip",
        filename=f"{version.adapter}-{version.version}{suffix}",
        headers={"X-Graft-Adapter": version.ref},
    )
