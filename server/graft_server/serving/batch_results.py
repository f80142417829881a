"""The results of a batch while it is at work: two files that each answer is appended to as it comes, so that whoever
goes on after a kill knows what has been answered.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any


class PartialResults:
    """Opens the files in ``folder`` and goes on behind what is in them. A line that was cut off is taken back.

    ``done`` has the ``custom_id`` of each request that is answered; ``counts`` those that were ``completed`` and
    ``failed``, and their tokens as OpenAI calls them. Blocking, though a line takes only microseconds.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "output.jsonl"
        self.errors = folder / "errors.jsonl"
        self.done: set[str] = set()
        self.counts: Counter[str] = Counter()
        for path in (self.output, self.errors):
            for line in _whole_lines(path):
                self._count(json.loads(line))
        # Unbuffered: in the system's hands, a line outlasts this process.
        self._streams = {True: self.output.open("ab", 0), False: self.errors.open("ab", 0)}

    def add(self, result: dict[str, Any]) -> None:
        """Keep one line of OpenAI's result files: with the answers if its request was answered, else with the errors.

        Raises:
            OSError: the disk is full; nothing of the line is kept.
        """
        stream, line = self._streams[_answered(result)], json.dumps(result).encode() + b"\n"
        end = os.fstat(stream.fileno()).st_size
        try:
            if stream.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), stream.name)
        except OSError:
            os.ftruncate(stream.fileno(), end)
            raise
        self._count(result)

    def __enter__(self) -> PartialResults:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stream in self._streams.values():
            stream.close()

    def _count(self, result: dict[str, Any]) -> None:
        self.done.add(result["custom_id"])
        self.counts["completed" if _answered(result) else "failed"] += 1
        usage = (result["response"] or {}).get("body", {}).get("usage") or {}
        # Responses have names of their own for them.
        self.counts["input_tokens"] += usage.get("prompt_tokens", usage.get("input_tokens", 0))
        self.counts["output_tokens"] += usage.get("completion_tokens", usage.get("output_tokens", 0))


def _answered(result: dict[str, Any]) -> bool:
    return result["response"] is not None and result["response"]["status_code"] == 200


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, without one that was being written when the process ended: the file ends before it."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                os.truncate(path, end)
                return
            end += len(line)
            yield line
