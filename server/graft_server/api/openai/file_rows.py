"""What an uploaded file must hold, looked at when it comes in: each fault is told with its row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from graft_client.schemas.common import FieldError
from graft_client.schemas.openai_files import BatchLine, UploadPurpose
from graft_plugins.dataset import read_examples
from graft_plugins.manager import PluginHost
from graft_plugins.reader import DataError, RawRow
from graft_server.problems import ProblemError

#: The task that learns from conversations, where a job names none.
CHAT = "chat"

_FORMAT = "jsonl"
_MOST_ERRORS = 50
#: As many as OpenAI's service takes.
_MOST_REQUESTS = 50_000


def check_rows(host: PluginHost, path: Path, purpose: UploadPurpose) -> None:
    """Blocking.

    Raises:
        ProblemError: ``invalid-data``, with the places of the first faults.
    """
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        detail = f"{path.name}: a file of one JSON object a line is expected; let its name end with .jsonl"
        raise ProblemError("invalid-data", detail, param="file")
    faults = _faults_of_batch(host, path) if purpose == "batch" else _faults_of_examples(host, path)
    errors: list[FieldError] = []
    more = 0
    for fault in faults:
        if len(errors) < _MOST_ERRORS:
            errors.append(FieldError(place=fault.place, message=fault.message))
        else:
            more += 1
    if errors:
        others = len(errors) - 1 + more
        tail = f" (and {others} more faults)" if others else ""
        detail = f"{errors[0].place}: {errors[0].message}{tail}"
        raise ProblemError("invalid-data", detail, errors=errors, param="file")


def read_batch(host: PluginHost, path: Path) -> Iterator[BatchLine | DataError]:
    """The requests of a batch's input, in order, with an error in the place of each bad one."""
    seen: dict[str, str] = {}
    rows = 0
    for raw in _rows(host, path):
        rows += 1
        if rows > _MOST_REQUESTS:
            yield DataError(path.name, f"more than {_MOST_REQUESTS} requests; send several batches", fatal=True)
            return
        line = raw if isinstance(raw, DataError) else _line_of(raw)
        if isinstance(line, BatchLine):
            place = raw.place
            if line.custom_id in seen:
                line = DataError(f"{place}:custom_id", f"{line.custom_id!r} stands at {seen[line.custom_id]} already")
            else:
                seen[line.custom_id] = place
        yield line
    if not rows:
        yield DataError(path.name, "there are no requests in it", fatal=True)


def _faults_of_batch(host: PluginHost, path: Path) -> Iterator[DataError]:
    return (line for line in read_batch(host, path) if isinstance(line, DataError))


def _faults_of_examples(host: PluginHost, path: Path) -> Iterator[DataError]:
    """A file of conversations is held against the chat task; whose rows others are, only a job says."""
    first = next((raw for raw in _rows(host, path) if isinstance(raw, RawRow)), None)
    if first is not None and "messages" in first.data:
        loaded = read_examples(host.readers, host.task(CHAT), [path], _FORMAT)
        return (row for row in loaded if isinstance(row, DataError))
    if first is None and not any(isinstance(raw, DataError) for raw in _rows(host, path)):
        return iter([DataError(path.name, "there are no rows in it", fatal=True)])
    return (raw for raw in _rows(host, path) if isinstance(raw, DataError))


def _rows(host: PluginHost, path: Path) -> Iterator[RawRow | DataError]:
    try:
        yield from host.readers[_FORMAT].read([path])
    except DataError as error:
        yield error


def _line_of(raw: RawRow) -> BatchLine | DataError:
    try:
        line = BatchLine.model_validate(raw.data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        return DataError(f"{raw.place}:{field}" if field else raw.place, first["msg"])
    if line.body.get("stream"):
        return DataError(f"{raw.place}:body.stream", "the answers of a batch are not streamed; leave it out")
    return line
