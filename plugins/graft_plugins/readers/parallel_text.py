"""Parallel text: line N of one file translates line N of the other, as in ``train.en`` and ``train.de``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from graft_plugins.hookspecs import hookimpl
from graft_plugins.reader import DataError, DatasetReader, RawRow
from graft_plugins.text_files import read_lines

#: A language code with an optional script or region, but no suffix of a file format that looks like one.
_LANGUAGE = re.compile(
    r"(?!(?:bin|csv|dat|doc|gz|htm|log|md|mo|pdf|po|pot|tmx|tsv|txt|xls|xml|yml|zip)$)"
    r"[a-z]{2,3}([_-][A-Za-z]{2,4})?"
)


class _Side(NamedTuple):
    path: Path
    stem: str
    language: str


class ParallelTextReader(DatasetReader):
    """Pairs of text files with one stem and two language codes. The file named first is the source side."""

    name = "parallel-text"
    description = "Pairs of text files, one sentence a line: train.en and train.de, or two .txt files."
    tasks: ClassVar[frozenset[str]] = frozenset({"translation"})

    def accepts(self, files: Sequence[Path]) -> bool:
        return _pairs(files) is not None

    def read(self, files: Sequence[Path]) -> Iterator[RawRow | DataError]:
        pairs = _pairs(files)
        if pairs is None:
            names = ", ".join(path.name for path in files)
            raise DataError(names, "pairs of files are expected, for instance train.en and train.de", fatal=True)
        for source, target in pairs:
            yield from _read_pair(source, target)


def _side(path: Path) -> _Side | None:
    """Stem and language of ``train.de``, ``train.de.txt``, ``de.txt``, or of ``other.txt`` without any."""
    name = path.name
    is_text = name.lower().endswith(".txt")
    if is_text:
        name = name[:-4]
    stem, dot, suffix = name.rpartition(".")
    language = suffix if _LANGUAGE.fullmatch(suffix) else ""
    if language and (dot or is_text):
        return _Side(path, stem, language)
    return _Side(path, "", "") if is_text else None


def _pairs(files: Sequence[Path]) -> list[tuple[_Side, _Side]] | None:
    sides = [_side(path) for path in files]
    if len(sides) == 2 and all(path.suffix.lower() == ".txt" for path in files):
        source, target = sides
        return [(source, target)] if source is not None and target is not None else None
    by_stem: dict[str, list[_Side]] = {}
    for side in sides:
        if side is None or not side.language:
            return None
        by_stem.setdefault(side.stem, []).append(side)
    if not by_stem or any(len(pair) != 2 for pair in by_stem.values()):
        return None
    first = next(iter(by_stem.values()))[0].language
    # The same direction for every pair, whatever the order of the later files.
    ordered = [sorted(pair, key=lambda side: side.language != first) for pair in by_stem.values()]
    if any(source.language != first or target.language == first for source, target in ordered):
        return None
    return [(source, target) for source, target in ordered]


def _read_pair(source: _Side, target: _Side) -> Iterator[RawRow | DataError]:
    counts = [sum(1 for _ in read_lines(side.path)) for side in (source, target)]
    if counts[0] != counts[1]:
        raise DataError(
            source.path.name,
            f"{source.path.name} has {counts[0]} lines and {target.path.name} has {counts[1]}; "
            "line N of one must translate line N of the other",
            fatal=True,
        )
    lines = zip(read_lines(source.path), read_lines(target.path), strict=True)
    for (number, left), (_, right) in lines:
        left, right = left.strip(), right.strip()
        if left and right:
            data = {
                "source": left,
                "target": right,
                "source_language": source.language,
                "target_language": target.language,
            }
            yield RawRow(f"{source.path.name}:{number}", data)
        elif left or right:
            blank = target if left else source
            yield DataError(f"{blank.path.name}:{number}", "the line is blank and its counterpart is not")


@hookimpl
def register_readers(register: Callable[[DatasetReader], None]) -> None:
    register(ParallelTextReader())
