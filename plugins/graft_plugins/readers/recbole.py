"""RecBole atomic files: tab-separated with a typed header; ``.inter`` has interactions, ``.item`` items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from graft_plugins.hookspecs import hookimpl
from graft_plugins.reader import DataError, DatasetReader, RawRow
from graft_plugins.readers.histories import Interaction, histories
from graft_plugins.text_files import read_lines

_SUFFIXES = {".inter", ".item", ".user", ".kg", ".link"}


class RecboleReader(DatasetReader):
    """Histories from ``.inter``, with titles (and the year of release, if there is one) from ``.item``."""

    name = "recbole"
    description = "RecBole atomic files: .inter, and .item for titles; other atomic files are not needed."
    tasks: ClassVar[frozenset[str]] = frozenset({"recommendation"})

    def accepts(self, files: Sequence[Path]) -> bool:
        suffixes = [path.suffix.lower() for path in files]
        return ".inter" in suffixes and set(suffixes) <= _SUFFIXES

    def read(self, files: Sequence[Path]) -> Iterator[RawRow | DataError]:
        titles: dict[str, str] = {}
        interactions: list[Interaction] = []
        for path in sorted(files, key=lambda path: path.suffix.lower() != ".item"):
            suffix = path.suffix.lower()
            if suffix not in {".item", ".inter"}:
                continue
            for row in _table(path):
                if isinstance(row, DataError):
                    yield row
                elif suffix == ".item":
                    titles[row.data["item_id"]] = _title(row)
                else:
                    interaction = _interaction(row)
                    if isinstance(interaction, DataError):
                        yield interaction
                    else:
                        interactions.append(interaction)
        yield from histories(interactions, titles)


def _table(path: Path) -> Iterator[RawRow | DataError]:
    """Rows by column name, without the header's types (``item_id:token`` is ``item_id``)."""
    header: list[str] = []
    needed = ["item_id"] if path.suffix.lower() == ".item" else ["user_id", "item_id"]
    for number, line in read_lines(path):
        cells = line.rstrip("\r\n").split("\t")
        place = f"{path.name}:{number}"
        if not header:
            header = [cell.split(":")[0] for cell in cells]
            for name in needed:
                if name not in header:
                    message = f"the header has no {name}:token; it has {', '.join(cells)}"
                    raise DataError(place, message, fatal=True)
        elif len(cells) != len(header):
            yield DataError(place, f"the row has {len(cells)} cells, the header has {len(header)}")
        else:
            yield RawRow(place, dict(zip(header, cells, strict=True)))


def _title(row: RawRow) -> str:
    """The first column named like a title or a name, and the year behind it."""
    title = next((row.data[key] for key in row.data if "title" in key or "name" in key), "")
    year = next((row.data[key] for key in row.data if "year" in key), "")
    if not title:
        return str(row.data["item_id"])
    return f"{title} ({year})" if year and year not in title else str(title)


def _interaction(row: RawRow) -> Interaction | DataError:
    time = row.data.get("timestamp", "0")
    try:
        return Interaction(row.data["user_id"], row.data["item_id"], float(time), row.place)
    except ValueError:
        return DataError(f"{row.place}:timestamp", f"{time!r} is not a number")


@hookimpl
def register_readers(register: Callable[[DatasetReader], None]) -> None:
    register(RecboleReader())
