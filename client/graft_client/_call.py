"""What one HTTP exchange is, said without doing it: a request and how to read the answer.

``calls.py`` describes every route with these types once; ``sync.py`` and ``aio.py`` only carry them out.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Generic, Literal, TypeVar

from graft_client.schemas.common import RequestSchema

T = TypeVar("T")

_OCTETS = "application/octet-stream"

Progress = Callable[[int], None]
"""Told the number of bytes that were read for sending since it was last called."""


@dataclass(frozen=True)
class Upload:
    """A multipart form: plain fields, and files that are read from disk as they are sent."""

    fields: Mapping[str, str]
    files: tuple[Path, ...]
    progress: Progress | None = None
    profile: tuple[Path, ...] = ()

    def open(self, stack: ExitStack) -> list[tuple[str, tuple[str, BinaryIO, str]]]:
        """The files as httpx takes them, open until ``stack`` closes."""
        return [
            (part, (path.name, stack.enter_context(_CountedFile(path, self.progress)), _OCTETS))
            for part, paths in (("files", self.files), ("profile", self.profile))
            for path in paths
        ]


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request whose answer is one document.

    ``repeatable`` says that sending it twice does no harm, which is what allows a retry.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    parse: Callable[[str], T]
    params: Mapping[str, str | int] = field(default_factory=dict)
    body: RequestSchema | None = None
    upload: Upload | None = None
    repeatable: bool = False


@dataclass(frozen=True)
class StreamCall(Generic[T]):
    """A request whose answer comes piece by piece.

    ``framing`` is how pieces are told apart: server-sent events (WHATWG HTML, section 9.2), one JSON document
    a line, or bytes as they come. ``resume`` makes the call that goes on after the last piece that was seen;
    a stream without it is not taken up again once its first piece has arrived.
    """

    method: Literal["GET", "POST"]
    path: str
    framing: Literal["sse", "ndjson", "bytes"]
    parse: Callable[[str | bytes], T]
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: RequestSchema | None = None
    repeatable: bool = True
    resume: Callable[[T], StreamCall[T]] | None = None


class Lines:
    """Cuts bytes into lines at ``\\n`` alone.

    ``httpx.Response.iter_lines`` also cuts at U+2028 and others, which stand unescaped inside JSON strings.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that ``chunk`` completes, blank ones left out."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        return [line.decode() for line in whole if line.strip()]

    def flush(self) -> list[str]:
        """What stands after the last line break."""
        rest, self._rest = self._rest, b""
        return [rest.decode()] if rest.strip() else []


class _CountedFile(io.FileIO):
    """A file, open for reading, that says how much of it was read."""

    def __init__(self, path: Path, progress: Progress | None) -> None:
        super().__init__(path, "rb")
        self._progress = progress

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size) or b""
        if self._progress is not None:
            self._progress(len(data))
        return data
