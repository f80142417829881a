"""JSON rows: one object a line (``.jsonl``, ``.ndjson``), or a ``.json`` file holding an array of objects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from graft_plugins.hookspecs import hookimpl
from graft_plugins.reader import DataError, DatasetReader, RawRow
from graft_plugins.text_files import read_lines, read_text

_LINES = {".jsonl", ".ndjson"}
_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"


class JsonlReader(DatasetReader):
    """Objects as rows. Also takes an object with a single array of objects in it, as that array."""

    name = "jsonl"
    description = "JSON objects, one a line (.jsonl, .ndjson) or in one array (.json)."
    tasks: ClassVar[frozenset[str]] = frozenset()

    def accepts(self, files: Sequence[Path]) -> bool:
        return all(path.suffix.lower() in {*_LINES, ".json"} for path in files)

    def read(self, files: Sequence[Path]) -> Iterator[RawRow | DataError]:
        for path in files:
            yield from _read_array(path) if path.suffix.lower() == ".json" else _read_lines(path)


def _read_lines(path: Path) -> Iterator[RawRow | DataError]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            yield DataError(place, f"not valid JSON: {error.msg} at column {error.colno}")
        except (ValueError, RecursionError) as error:
            yield DataError(place, f"not valid JSON: {error}")
        else:
            yield _row(place, value)


def _read_array(path: Path) -> Iterator[RawRow | DataError]:
    """Elements one by one, so that each has its line and those in front of a broken one are kept."""
    text = read_text(path)
    try:
        yield from _elements(path, text)
    except json.JSONDecodeError as error:
        place = f"{path.name}:{error.lineno}"
        yield DataError(place, f"not valid JSON: {error.msg} at column {error.colno}", fatal=True)
    except RecursionError:
        yield DataError(path.name, "not valid JSON: it is nested too deeply", fatal=True)


def _elements(path: Path, text: str) -> Iterator[RawRow | DataError]:
    start = _skip(text, 0)
    wrapped = text[start : start + 1] == "{"
    if wrapped:
        start = _only_array(path, text, start)
    elif text[start : start + 1] != "[":
        raise DataError(f"{path.name}:1", "an array of objects is expected", fatal=True)
    line, seen, position = 1, 0, _skip(text, start + 1)
    while text[position : position + 1] != "]":
        value, end = _DECODER.raw_decode(text, position)
        line, seen = line + text.count("\n", seen, position), position
        yield _row(f"{path.name}:{line}", value)
        position = _skip_comma(text, end, "]")
    if not wrapped:
        _check_end(text, position + 1)


def _only_array(path: Path, text: str, start: int) -> int:
    """Where the one array of objects in a top-level object begins."""
    arrays: dict[str, int] = {}
    keys: list[str] = []
    position = _skip(text, start + 1)
    while text[position : position + 1] != "}":
        key, position = _DECODER.raw_decode(text, position)
        position = _skip(text, position)
        if text[position : position + 1] != ":":
            raise json.JSONDecodeError("Expecting ':' delimiter", text, position)
        begin = _skip(text, position + 1)
        value, position = _DECODER.raw_decode(text, begin)
        keys.append(str(key))
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            arrays[str(key)] = begin
        position = _skip_comma(text, position, "}")
    _check_end(text, position + 1)
    if len(arrays) != 1:
        found = f"arrays {', '.join(arrays)}" if arrays else f"an object with {', '.join(keys) or 'nothing in it'}"
        raise DataError(f"{path.name}:1", f"one array of objects is expected, found {found}", fatal=True)
    return next(iter(arrays.values()))


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BLANK:
        position += 1
    return position


def _skip_comma(text: str, position: int, close: str) -> int:
    """From behind an element to the next one, or to the bracket that closes them all."""
    position = _skip(text, position)
    if text[position : position + 1] == ",":
        return _skip(text, position + 1)
    if text[position : position + 1] != close:
        raise json.JSONDecodeError(f"Expecting ',' or {close!r}", text, position)
    return position


def _check_end(text: str, position: int) -> None:
    """Rows behind the end must not get lost."""
    position = _skip(text, position)
    if position < len(text):
        raise json.JSONDecodeError("extra data", text, position)


def _row(place: str, value: object) -> RawRow | DataError:
    if isinstance(value, dict):
        return RawRow(place, value)
    return DataError(place, f"a row must be a JSON object, not {type(value).__name__}")


@hookimpl
def register_readers(register: Callable[[DatasetReader], None]) -> None:
    register(JsonlReader())
