"""What a dataset reader is: it turns files of one format into raw rows, each with the place it came from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


class DataError(ValueError):
    """A data file that can't be read, or a row that can't be used.

    ``place`` is ``file``, ``file:line`` or ``file:line:field``. A *fatal* error ends the reading of the file
    (a wrong encoding, a broken archive); any other concerns one row, and reading can go on behind it.
    """

    def __init__(self, place: str, message: str, *, fatal: bool = False) -> None:
        super().__init__(f"{place}: {message}")
        self.place = place
        self.message = message
        self.fatal = fatal


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in a file. ``data`` is not validated yet."""

    place: str
    data: Mapping[str, Any]


class DatasetReader(ABC):
    """Reads one data format. Register an instance through the ``register_readers`` hook."""

    #: The format's name, e.g. ``jsonl``.
    name: ClassVar[str]
    #: One sentence for listings.
    description: ClassVar[str]
    #: Tasks this format makes sense for; empty means every task.
    tasks: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def accepts(self, files: Sequence[Path]) -> bool:
        """Whether these files, taken together, are of this format. Looks at names first, then at content."""

    @abstractmethod
    def read(self, files: Sequence[Path]) -> Iterator[RawRow | DataError]:
        """Rows in order; a bad row is yielded as a ``DataError`` so that reading can go on behind it."""
