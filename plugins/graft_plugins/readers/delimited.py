"""CSV and TSV files (RFC 4180) with a header row that names the columns."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from graft_plugins.hookspecs import hookimpl
from graft_plugins.reader import DataError, DatasetReader, RawRow
from graft_plugins.text_files import head, read_csv

_DELIMITERS = ",;\t|"


class DelimitedReader(DatasetReader):
    """Rows under a header. The delimiter is a tab in ``.tsv``, otherwise the most frequent one of the header."""

    name = "csv"
    description = "CSV or TSV with a header row; the delimiter (comma, semicolon, tab, bar) is found by itself."
    tasks: ClassVar[frozenset[str]] = frozenset()

    def accepts(self, files: Sequence[Path]) -> bool:
        return all(path.suffix.lower() in {".csv", ".tsv"} for path in files)

    def read(self, files: Sequence[Path]) -> Iterator[RawRow | DataError]:
        for path in files:
            yield from _read_file(path)


def _read_file(path: Path) -> Iterator[RawRow | DataError]:
    rows = read_csv(path, delimiter=_delimiter(path))
    header: list[str] = []
    begin = 1
    try:
        for cells in rows:
            place, begin = f"{path.name}:{begin}", rows.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _checked_header(place, cells)
            elif len(cells) != len(header):
                yield DataError(place, f"the row has {len(cells)} cells, the header has {len(header)}")
            else:
                # An empty cell is an absent value, as CSV has no other way to say so.
                yield RawRow(place, {name: cell or None for name, cell in zip(header, cells, strict=True)})
    except csv.Error as error:
        place = f"{path.name}:{begin}"
        yield DataError(place, f"the row that begins here is not valid CSV: {error}", fatal=True)


def _delimiter(path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = next((line for line in head(path).splitlines() if line.strip()), "")
    unquoted = "".join(first.split('"')[::2])
    return max(_DELIMITERS, key=unquoted.count)


def _checked_header(place: str, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if "" in names:
        raise DataError(place, f"column {names.index('') + 1} of the header row has no name", fatal=True)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(place, f"the header row names column {twice[0]!r} twice", fatal=True)
    return names


@hookimpl
def register_readers(register: Callable[[DatasetReader], None]) -> None:
    register(DelimitedReader())
