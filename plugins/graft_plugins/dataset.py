"""From files to examples: picks a reader, lets the task parse each row, and says what is wrong where.

Bad data is never raised but yielded: each problem is a ``DataError`` with its place, and a *fatal* one ends the
reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from graft_plugins.errors import UnknownNameError
from graft_plugins.reader import DataError, DatasetReader, RawRow
from graft_plugins.task import AnyTask, RowError


@dataclass(frozen=True, slots=True)
class LoadedRow:
    """A row that is an example of the task, and where it stands."""

    place: str
    example: BaseModel


@dataclass(frozen=True, slots=True)
class LoadedDataset:
    """Everything that was read. ``format`` is ``None`` where no reader could be chosen."""

    format: str | None
    examples: list[Any] = field(default_factory=list)
    errors: list[DataError] = field(default_factory=list)

    @property
    def fatal(self) -> DataError | None:
        """The error that ended the reading, if one did."""
        return next((error for error in self.errors if error.fatal), None)


def formats_for(readers: Mapping[str, DatasetReader], task: AnyTask) -> list[str]:
    """Names of the formats that make sense for a task, the specialised ones first."""
    usable = [reader for reader in readers.values() if not reader.tasks or task.name in reader.tasks]
    return [reader.name for reader in sorted(usable, key=lambda reader: not reader.tasks)]


def pick_reader(
    readers: Mapping[str, DatasetReader],
    task: AnyTask,
    files: Sequence[Path],
    format: str | None = None,  # noqa: A002 - the name that the command line and the API use
) -> DatasetReader:
    """The reader for these files: the one named, else the first that suits the task and accepts the files.

    Raises:
        DataError: fatal; a file is missing, unreadable or empty, or no reader accepts the files.
        UnknownNameError: ``format`` names no reader.
    """
    if format is not None and format not in readers:
        raise UnknownNameError("format", format, readers)
    if not files:
        raise DataError("(no file)", "name at least one data file", fatal=True)
    for path in files:
        _check_file(path)
    if format is not None:
        return readers[format]
    usable = formats_for(readers, task)
    for name in usable:
        if readers[name].accepts(files):
            return readers[name]
    raise DataError(_names(files), _why_refused(readers, task, files, usable), fatal=True)


def read_examples(
    readers: Mapping[str, DatasetReader],
    task: AnyTask,
    files: Sequence[Path],
    format: str | None = None,  # noqa: A002 - the name that the command line and the API use
) -> Iterator[LoadedRow | DataError]:
    """Rows as examples, in order, with a ``DataError`` in the place of each bad one.

    Raises:
        UnknownNameError: ``format`` names no reader.
    """
    try:
        reader = pick_reader(readers, task, files, format)
    except DataError as error:
        yield error
        return
    yield from _parsed(reader, task, files)


def load_dataset(
    readers: Mapping[str, DatasetReader],
    task: AnyTask,
    files: Sequence[Path],
    format: str | None = None,  # noqa: A002 - the name that the command line and the API use
) -> LoadedDataset:
    """All examples and all errors of these files.

    Raises:
        UnknownNameError: ``format`` names no reader.
    """
    try:
        reader = pick_reader(readers, task, files, format)
    except DataError as error:
        return LoadedDataset(format=None, errors=[error])
    dataset = LoadedDataset(format=reader.name)
    for row in _parsed(reader, task, files):
        if isinstance(row, DataError):
            dataset.errors.append(row)
        else:
            dataset.examples.append(row.example)
    return dataset


def _parsed(reader: DatasetReader, task: AnyTask, files: Sequence[Path]) -> Iterator[LoadedRow | DataError]:
    empty = True
    for raw in _raw_rows(reader, files):
        empty = False
        row = raw if isinstance(raw, DataError) else _parse(task, raw)
        yield row
        if isinstance(row, DataError) and row.fatal:
            return
    if empty:
        yield DataError(_names(files), f"no rows were found (read as {reader.name})", fatal=True)


def _raw_rows(reader: DatasetReader, files: Sequence[Path]) -> Iterator[RawRow | DataError]:
    try:
        yield from reader.read(files)
    except DataError as error:
        yield error
    except Exception as error:
        # A reader may come from a plugin: its fault must not take the caller down.
        message = f"the {reader.name} reader failed: {type(error).__name__}: {error}"
        yield DataError(_names(files), message, fatal=True)


def _parse(task: AnyTask, raw: RawRow) -> LoadedRow | DataError:
    try:
        return LoadedRow(raw.place, task.parse_row(raw.data))
    except ValidationError as error:
        return _flattened(task, raw, error)
    except RowError as error:
        place = f"{raw.place}:{error.field}" if error.field else raw.place
        return DataError(place, str(error))
    except Exception as error:
        message = f"task {task.name} failed on this row: {type(error).__name__}: {error}"
        return DataError(raw.place, message)


def _flattened(task: AnyTask, raw: RawRow, error: ValidationError) -> DataError:
    """The place of the first thing that is wrong, and all of them in one sentence."""
    problems = [(_column(task, raw, problem["loc"]), _sentence(problem, raw)) for problem in error.errors()]
    field_name, message = problems[0]
    rest = [f"{name}: {text}" if name else text for name, text in problems[1:]]
    place = f"{raw.place}:{field_name}" if field_name else raw.place
    return DataError(place, "; ".join([message, *rest]))


def _column(task: AnyTask, raw: RawRow, loc: tuple[int | str, ...]) -> str:
    """A field's path by the name its column has in the file."""
    if not loc:
        return ""
    written = next(
        (key for key in raw.data if task.field_aliases.get(key, key) == loc[0] and raw.data[key] is not None),
        str(loc[0]),
    )
    return ".".join([written, *map(str, loc[1:])])


def _sentence(problem: Mapping[str, Any], raw: RawRow) -> str:
    if problem["type"] == "missing":
        columns = ", ".join(key for key, value in raw.data.items() if value is not None)
        return f"this field is missing; the row has {columns or 'no fields'}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(path.name, "this is a folder; name the files in it", fatal=True)
    if not path.exists():
        raise DataError(str(path), "there is no such file", fatal=True)
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except OSError as error:
        raise DataError(path.name, f"the file can't be read: {error.strerror}", fatal=True) from error
    if not first:
        raise DataError(path.name, "the file is empty", fatal=True)


def _why_refused(
    readers: Mapping[str, DatasetReader], task: AnyTask, files: Sequence[Path], usable: Sequence[str]
) -> str:
    for reader in readers.values():
        if reader.name not in usable and reader.accepts(files):
            return (
                f"{reader.name} files are for {', '.join(sorted(reader.tasks))}; {task.name} reads {', '.join(usable)}"
            )
    return f"no reader knows this kind of file; {task.name} reads {', '.join(usable)}"


def _names(files: Sequence[Path]) -> str:
    return ", ".join(path.name for path in files)
