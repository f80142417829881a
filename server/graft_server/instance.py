"""One server a data folder: a lock that the kernel drops with the process, and a note where it listens."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graft_client.errors import GraftError
from graft_server.whole_files import write_whole

_LOCK_FILE = "server.lock"
_NOTE_FILE = "server.json"


@contextmanager
def claimed(data_dir: Path) -> Iterator[None]:
    """Own ``data_dir`` for the body of the ``with``.

    Raises:
        GraftError: another server runs on it, or it can't be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = (data_dir / _LOCK_FILE).open("a")
    except OSError as error:
        raise GraftError(f"{data_dir} can't be used as data folder: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GraftError(
                f"another server{_describe(data_dir)} already runs on {data_dir}; "
                "stop it, or choose another folder with --data-dir"
            ) from None
        try:
            yield
        finally:
            (data_dir / _NOTE_FILE).unlink(missing_ok=True)


def write_note(data_dir: Path, url: str) -> None:
    """Write ``server.json``, whole or not at all."""
    write_whole(data_dir / _NOTE_FILE, json.dumps({"url": url, "pid": os.getpid()}) + "\n")


def _describe(data_dir: Path) -> str:
    try:
        note = json.loads((data_dir / _NOTE_FILE).read_text())
        return f" (pid {note['pid']}, {note['url']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
