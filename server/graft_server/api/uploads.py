"""Uploaded files: taken into a staging folder under safe names, and gone from there however the request ends."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath

from fastapi import UploadFile

from graft_server.problems import ProblemError

_CHUNK = 1 << 20
#: Of file names, in bytes; file systems end at 255, and some names get an ending.
_LONGEST_NAME = 200


@asynccontextmanager
async def staged(
    uploads: Sequence[UploadFile],
    staging: Path,
    check_name: Callable[[str], None] = lambda name: None,
) -> AsyncIterator[list[Path]]:
    """The uploads as files of one new folder under ``staging``, in order, for the body of the ``with``.

    Raises:
        ProblemError: a file without a name, with a path in its name, named twice, or refused by ``check_name``.
    """
    names = [_safe_name(upload.filename) for upload in uploads]
    for name in names:
        check_name(name)
        if names.count(name) > 1:
            raise ProblemError("invalid-request", f"files: {name!r} was sent twice")
    async with staging_folder(staging) as folder:
        paths = [folder / name for name in names]
        for upload, path in zip(uploads, paths, strict=True):
            await asyncio.to_thread(_copy, upload, path)
        yield paths


@asynccontextmanager
async def staging_folder(staging: Path) -> AsyncIterator[Path]:
    """A new folder under ``staging`` for the body of the ``with``."""
    folder = await asyncio.to_thread(_new_folder, staging)
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _safe_name(name: str | None) -> str:
    if not name:
        raise ProblemError("invalid-request", "files: a part has no file name")
    if "/" in name or "\\" in name or "\0" in name or name in (".", "..") or PurePosixPath(name).name != name:
        raise ProblemError("invalid-request", f"files: {name!r} is a path; send a plain file name")
    if len(name.encode()) > _LONGEST_NAME:
        raise ProblemError("invalid-request", f"files: a name of more than {_LONGEST_NAME} bytes can't be stored")
    return name


def _new_folder(staging: Path) -> Path:
    staging.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=staging))


def _copy(upload: UploadFile, path: Path) -> None:
    with path.open("xb") as file:
        shutil.copyfileobj(upload.file, file, _CHUNK)
