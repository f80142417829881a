"""Files that commands write: looked at before the work, whole when they appear, and named where a write fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from graft_client.errors import UsageError


def check_folder(file: Path) -> None:
    """Whether ``file`` has a folder to be in, asked before work that would be lost.

    Raises:
        UsageError: it has none.
    """
    if not file.absolute().parent.is_dir():
        raise UsageError(f"{file.parent}: no such folder")


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Names the file that the body writes in an error of the system, which names none where a write fails."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file to write, which appears whole at the end of the ``with`` or not at all.

    Raises:
        OSError: it can't be written; the file that was there before stays.
    """
    if path.exists() and not path.is_file():  # a device or a pipe can't be replaced
        with named(path), path.open("w", encoding="utf-8") as file:
            yield file
        return
    draft = path.with_name(path.name + ".tmp")
    try:
        with named(path):
            with draft.open("w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
