"""The rows of a bulk prediction that are done, kept beside the output so that a killed run goes on where it was.

The journal is appended to and never rewritten: a line a finished row, ``{"key": ..., "row": {...}}``. A line that
was cut off by a kill is dropped when the journal is opened again. ``key`` is a digest of the request, so that
rows of an input that was edited meanwhile are asked again.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from graft_client.cli.outputs import named

_SYNC_EVERY = 1.0


class Journal:
    """Finished rows by key. Every row reaches the operating system at once, and the disk within a second.

    Raises:
        OSError: the file can't be read or written, by each of its methods.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        self._file = path.open("a+b")
        self._synced = time.monotonic()
        self._file.seek(0)
        good = 0
        for line in self._file:
            record = _record(line)
            if record is None:
                break
            self.rows[record["key"]] = record["row"]
            good += len(line)
        self._file.truncate(good)

    def add(self, key: str, row: dict[str, Any]) -> None:
        """Keeps a finished row."""
        with named(self.path):
            self._file.write(json.dumps({"key": key, "row": row}, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        self.rows[key] = row
        if time.monotonic() - self._synced >= _SYNC_EVERY:
            self.sync()

    def sync(self) -> None:
        """Waits until everything is on the disk."""
        with named(self.path):
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with named(self.path), self._file:
            self.sync()


def _record(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("key"), str) and isinstance(record.get("row"), dict)
    return record if whole else None
