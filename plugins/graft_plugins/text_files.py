"""Text files for dataset readers: UTF-8 lines with their numbers, and errors that say where and why."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from graft_plugins.reader import DataError

if TYPE_CHECKING:
    from _csv import Reader

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"
#: Characters of a cell. Python's own bound, 131,072, is less than a long document or history.
_MOST_OF_A_CELL = 16 << 20


def read_lines(path: Path, *, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Numbered lines from 1, each with its line end. A UTF-8 byte-order mark is left out.

    Raises:
        DataError: fatal; the file can't be opened, or is not in the encoding (with line and byte offset).
    """
    offset = 0
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw
                if number == 1 and encoding == "utf-8":
                    if raw.startswith(_UTF16_MARKS):
                        raise DataError(
                            path.name,
                            "the file is UTF-16; UTF-8 is expected, so save it as UTF-8",
                            fatal=True,
                        )
                    line = raw.removeprefix(_UTF8_MARK)
                try:
                    yield number, line.decode(encoding)
                except UnicodeDecodeError as error:
                    at = offset + len(raw) - len(line) + error.start
                    raise DataError(
                        f"{path.name}:{number}",
                        f"byte 0x{line[error.start]:02x} at offset {at} is not valid {encoding.upper()}; "
                        f"save the file as {encoding.upper()}",
                        fatal=True,
                    ) from None
                offset += len(raw)
    except OSError as error:
        raise DataError(path.name, f"the file can't be read: {error.strerror}", fatal=True) from error


def read_text(path: Path) -> str:
    """The whole file as text; raises like ``read_lines``."""
    return "".join(line for _, line in read_lines(path))


def read_csv(path: Path, *, delimiter: str = ",", encoding: str = "utf-8") -> Reader:
    """The rows of a file as lists of cells (RFC 4180); raises ``csv.Error``, and like ``read_lines``."""
    # The bound is the process's, and a reader has no other.
    csv.field_size_limit(_MOST_OF_A_CELL)
    # Strict, so that a quote that is never closed is an error instead of a cell that swallows the file.
    return csv.reader((line for _, line in read_lines(path, encoding=encoding)), delimiter=delimiter, strict=True)


def head(path: Path, size: int = 65536) -> str:
    """The first bytes of a file as text for looking at its kind; an unreadable file looks empty."""
    try:
        with path.open("rb") as file:
            return file.read(size).decode("utf-8", errors="replace")
    except OSError:
        return ""
