"""Answering a file of requests: reading it, asking in bulk, and writing the answers in the order of the input."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_client._retry import RetryPolicy
from graft_client._transport import encodable
from graft_client.aio import AsyncClient
from graft_client.calls import prediction
from graft_client.cli.journal import Journal
from graft_client.cli.outputs import whole_file
from graft_client.errors import (
    AnswerTimeoutError,
    BusyError,
    ConnectError,
    DataError,
    GraftError,
    ProtocolError,
    UsageError,
)
from graft_client.schemas.common import Problem
from graft_client.schemas.predict import BulkLine, PredictRequest, SamplingOverrides

_CHUNK = 64
_PASSING = (429, 503)


@dataclass(frozen=True)
class Row:
    """One line of the input. ``key`` tells it from every other request and every other place in the file."""

    key: str
    request: PredictRequest
    extra: dict[str, Any]
    """What is copied into the output: the row's ``id``, where it has one."""


@dataclass
class Outcome:
    """What is known of each row so far."""

    journal: Journal
    problems: dict[str, Problem]

    def record(self, row: Row) -> dict[str, Any]:
        """The row's line of the output: its answer, or its problem."""
        done = self.journal.rows.get(row.key)
        return done if done is not None else row.extra | _failed(self.problems[row.key])


def read_rows(
    path: Path, *, adapter: str, task: str | None = None, sampling: SamplingOverrides | None = None
) -> list[Row]:
    """The requests of a JSONL file.

    A line is an object: ``{"text": ...}`` or a request by the task's schema; ``adapter`` in it takes the place
    of the default, and ``id`` is copied into the answer.

    Raises:
        DataError: a line is no such object; the text names the file and the line.
    """
    rows: list[Row] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                rows.append(_row(line, len(rows), adapter, task, sampling))
            except (DataError, UsageError) as error:
                raise DataError(f"{path}:{number}: {error}") from None
    if not rows:
        raise DataError(f"{path}: no requests in this file")
    return rows


def _row(line: bytes, index: int, adapter: str, task: str | None, sampling: SamplingOverrides | None) -> Row:
    try:
        value = json.loads(line.decode("utf-8-sig" if index == 0 else "utf-8"))
        # An escape can stand for what neither the request nor the output can hold.
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise DataError("not UTF-8") from None
    except UnicodeEncodeError:
        raise DataError("holds half of a surrogate pair, which is no character") from None
    except ValueError as error:
        raise DataError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError("not a JSON object")
    extra = {"id": value.pop("id")} if "id" in value else {}
    chosen = value.pop("adapter", adapter)
    if not isinstance(chosen, str):
        raise DataError("`adapter` must be a string")
    if not value:
        raise DataError("no request in this object")
    text = value.get("text")
    request = prediction(
        chosen,
        text if len(value) == 1 and isinstance(text, str) else value,
        # The task is for the base model; an adapter has its own.
        task=task if chosen == adapter else None,
        sampling=sampling,
    )
    with encodable():
        digest = hashlib.sha256(f"{index}\n{extra}\n{request.model_dump_json()}".encode())
    return Row(digest.hexdigest()[:32], request, extra)


async def answer_rows(
    rows: Sequence[Row],
    outcome: Outcome,
    *,
    url: str | None,
    key: str | None = None,
    concurrency: int,
    told: Callable[[int], None],
) -> None:
    """Asks for every row that the journal does not have yet. ``told`` gets the number of rows that are settled.

    Raises:
        GraftError: the server went away, or is busy, for longer than waiting helps.
        OSError: an answer could not be kept in the journal.
    """
    missing = [row for row in rows if row.key not in outcome.journal.rows]
    settled = len(rows) - len(missing)

    def settle(row: Row, line: BulkLine) -> None:
        nonlocal settled
        if line.result is not None:
            answer = line.result.model_dump(mode="json", exclude={"id", "timings"})
            outcome.journal.add(row.key, row.extra | answer)
        elif line.problem is not None:
            outcome.problems[row.key] = line.problem
        settled += 1
        told(settled)

    chunks = (missing[i : i + _CHUNK] for i in range(0, len(missing), _CHUNK))
    async with AsyncClient(url, key=key) as client:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(_work(client, chunks, settle))
        except* (GraftError, OSError) as errors:
            first: BaseException = errors
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None


async def _work(client: AsyncClient, chunks: Iterator[list[Row]], settle: Callable[[Row, BulkLine], None]) -> None:
    for chunk in chunks:
        await _settle_chunk(client, chunk, settle)


async def _settle_chunk(client: AsyncClient, chunk: list[Row], settle: Callable[[Row, BulkLine], None]) -> None:
    """Asks for a chunk, and again for what is still missing where the reason passes; predicting twice is safe."""
    policy = RetryPolicy(retries=6)
    missing = dict(enumerate(chunk))
    attempt = -1
    while missing:
        asked = list(missing)
        reason: GraftError | None = None
        try:
            async for line in client.predict_bulk(missing[index].request for index in asked):
                index = asked[line.index]
                if line.problem is not None and line.problem.status in _PASSING:
                    reason = BusyError(line.problem)
                elif (row := missing.pop(index, None)) is not None:
                    settle(row, line)
        except AnswerTimeoutError:
            raise
        except (ConnectError, BusyError) as error:
            reason = error
        if not missing:
            return
        if reason is None:
            raise ProtocolError(f"the server left {len(missing)} of {len(asked)} requests unanswered")
        attempt = 0 if len(missing) < len(asked) else attempt + 1
        delay = policy.delay(reason, attempt)
        if delay is None:
            raise reason
        await asyncio.sleep(delay)


def write_output(path: Path, rows: Sequence[Row], outcome: Outcome) -> None:
    """Writes every row's line, in the order of the input. The file appears whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    with whole_file(path) as file:
        for row in rows:
            file.write(json.dumps(outcome.record(row), ensure_ascii=False) + "\n")


def _failed(problem: Problem) -> dict[str, Any]:
    return {"problem": problem.model_dump(mode="json", exclude_none=True)}
