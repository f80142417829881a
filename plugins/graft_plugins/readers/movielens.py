"""The layouts in which GroupLens publishes MovieLens: 100K, 1M (and 10M), and the CSV files since then."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from graft_plugins.hookspecs import hookimpl
from graft_plugins.reader import DataError, DatasetReader, RawRow
from graft_plugins.readers.histories import Interaction, histories
from graft_plugins.text_files import read_csv, read_lines


@dataclass(frozen=True, slots=True)
class _Layout:
    """File names, separators and encoding. Ratings are user, item, rating, time; items are id, title, ..."""

    ratings: str
    rating_separator: str
    items: str
    item_separator: str
    encoding: str
    header: bool = False


_LAYOUTS = (
    _Layout("u.data", "\t", "u.item", "|", "latin-1"),
    _Layout("ratings.dat", "::", "movies.dat", "::", "latin-1"),
    _Layout("ratings.csv", ",", "movies.csv", ",", "utf-8", header=True),
)


class MovieLensReader(DatasetReader):
    """Histories from the ratings, with titles from the films' file; other files of the layout are ignored."""

    name = "movielens"
    description = "MovieLens: u.data and u.item, ratings.dat and movies.dat, or ratings.csv and movies.csv."
    tasks: ClassVar[frozenset[str]] = frozenset({"recommendation"})

    def accepts(self, files: Sequence[Path]) -> bool:
        return _layout(files) is not None

    def read(self, files: Sequence[Path]) -> Iterator[RawRow | DataError]:
        layout = _layout(files)
        if layout is None:
            expected = "; ".join(f"{layout.ratings} and {layout.items}" for layout in _LAYOUTS)
            names = ", ".join(path.name for path in files)
            raise DataError(names, f"not a MovieLens layout; there are {expected}", fatal=True)
        by_name = {path.name: path for path in files}
        titles: dict[str, str] = {}
        for place, cells in _cells(by_name[layout.items], layout.item_separator, layout):
            if len(cells) < 2:
                yield DataError(place, "a film needs an id and a title")
            else:
                titles[cells[0]] = cells[1].strip()
        interactions: list[Interaction] = []
        for place, cells in _cells(by_name[layout.ratings], layout.rating_separator, layout):
            try:
                user, item, _, time = cells
                interactions.append(Interaction(user, item, float(time), place))
            except ValueError:
                yield DataError(place, "a rating needs a user, a film, a rating and a time in seconds")
        yield from histories(interactions, titles)


def _layout(files: Sequence[Path]) -> _Layout | None:
    names = {path.name for path in files}
    return next((layout for layout in _LAYOUTS if {layout.ratings, layout.items} <= names), None)


def _cells(path: Path, separator: str, layout: _Layout) -> Iterator[tuple[str, list[str]]]:
    """Places and cells of the rows behind the header. Blank lines are left out."""
    if separator == ",":
        rows = read_csv(path, encoding=layout.encoding)
        numbered = ((rows.line_num, cells) for cells in rows)
    else:
        lines = read_lines(path, encoding=layout.encoding)
        numbered = ((number, line.rstrip("\r\n").split(separator)) for number, line in lines)
    try:
        for number, cells in numbered:
            if any(cells) and not (layout.header and number == 1):
                yield f"{path.name}:{number}", cells
    except csv.Error as error:
        raise DataError(path.name, f"not valid CSV: {error}", fatal=True) from None


@hookimpl
def register_readers(register: Callable[[DatasetReader], None]) -> None:
    register(MovieLensReader())
