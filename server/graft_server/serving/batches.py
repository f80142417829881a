"""Batches: files of requests that are answered in the background, behind whoever waits for an answer.

A batch is a document, which says where it stands, and its partial results. A server that was killed goes on where they
end; what an ended key has asked for is not answered any more.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from graft_client.schemas.openai_files import BatchLine
from graft_plugins.reader import DataError
from graft_server.access.keyring import Keyring
from graft_server.problems import ProblemError, as_problem
from graft_server.registry import Registry
from graft_server.registry.documents import DocumentRecord, Documents
from graft_server.registry.errors import ConflictError, StorageFullError, UnknownError, storage_errors
from graft_server.registry.outages import Outlasting
from graft_server.registry.reading import hold
from graft_server.serving.batch_results import PartialResults

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Folder of the data folder where batches at work keep their results.
FOLDER = "batches"
FINISHED = frozenset({"completed", "failed", "expired", "cancelled"})
#: What a batch's document says before anything of it is answered.
UNANSWERED: Mapping[str, Any] = {
    "outcome": None,
    "faults": None,
    "output_file_id": None,
    "error_file_id": None,
    "counts": {},
}

#: Batches at work at once; they share the places.
_BATCHES = 8
#: Seconds between two notes of how far a batch is.
_PACE = 1.0
#: Seconds between two looks at what other servers were told of a batch.
_LOOK = 2.0
#: Seconds between two tries to store results on a full disk.
_ROOM = 10.0
_MOST_FAULTS = 50


class Call(Protocol):
    """Answers a request by its path and body: status and document. It enters its ``turn`` when no limit of its caller
    keeps it back any more. Raises ``ProblemError`` for what may go better later."""

    def __call__(
        self, url: str, body: dict[str, Any], turn: AbstractAsyncContextManager[object]
    ) -> Awaitable[tuple[int, dict[str, Any]]]: ...


class _ElsewhereError(Exception):
    """Another server has taken the batch over."""


def is_unfinished(data: dict[str, Any]) -> bool:
    """Whether there is something left to do for a batch."""
    return data["status"] not in FINISHED


class Read(Protocol):
    """Reads an input file: its requests, with an error in the place of each bad one."""

    def __call__(self, path: Path) -> Iterator[BatchLine | DataError]: ...


class BatchRunner:
    """Works through the batches of one server. ``places`` is how many of their requests are asked at once."""

    def __init__(
        self, registry: Registry, keyring: Keyring, call: Call, read: Read, folder: Path, *, places: int
    ) -> None:
        self._registry = registry
        self._keyring = keyring
        self._call = call
        self._read = read
        self._folder = folder
        self._width = places
        self._places = asyncio.Semaphore(places)
        self._turns = asyncio.Semaphore(_BATCHES)
        self._stopping = asyncio.Event()
        self._ask = Outlasting(self._stopping)
        self._runs: dict[str, _Run] = {}

    async def start(self) -> None:
        """Go on with every batch of this server that is not finished, and forget what it had of any other."""
        unfinished = await self._ask(self._registry.documents.list, "batch", oldest_first=True, keep=is_unfinished)
        for record in unfinished:
            if await self._ask(self._is_own, record):
                self.begin(record.id)
        await asyncio.to_thread(self._forget_others)

    def _is_own(self, record: DocumentRecord) -> bool:
        """Whether this server is to work on a batch: the one that was asked for it does. Of batches that earlier
        releases took in, the first that can read their files."""
        if "server" not in record.data:
            try:
                self._registry.kept_files.stored(record.data["input_file_id"])
            except ConflictError:
                return False
            except UnknownError:
                pass  # whoever it is has to say so
        own = self._registry.server
        claimed = self._registry.documents.edit("batch", record.id, lambda data: {"server": data.get("server", own)})
        return bool(claimed.data["server"] == own)

    def _forget_others(self) -> None:
        """Remove what is left of batches that ended, or that another server took over while this one was away."""
        for folder in self._folder.glob("*"):
            if folder.name not in self._runs:
                shutil.rmtree(folder, ignore_errors=True)

    async def stop(self) -> None:
        """Leave every batch where it stands."""
        self._stopping.set()
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def begin(self, batch_id: str) -> None:
        """Work on a batch that is new, or that a server has left, unless it is at work already."""
        if batch_id in self._runs:
            return
        run = self._runs[batch_id] = _Run()
        run.task = asyncio.create_task(self._run(batch_id, run), name=batch_id)

    def cancel(self, batch_id: str) -> None:
        """Ask no more requests of a batch whose document says that it is to end."""
        run = self._runs.get(batch_id)
        if run is not None:
            run.ending.set()
            if run.asking is not None:
                run.asking.cancel()

    async def _run(self, batch_id: str, run: _Run) -> None:
        try:
            await self._to_its_end(batch_id, run)
        except _ElsewhereError:
            log.warning("batch %s was taken over by another server; what was answered here is let go", batch_id)
            await asyncio.to_thread(shutil.rmtree, self._folder / batch_id, ignore_errors=True)
        except Exception:
            log.exception("batch %s is left as it stands until the server starts again", batch_id)
        finally:
            del self._runs[batch_id]

    async def _to_its_end(self, batch_id: str, run: _Run) -> None:
        try:
            record = await self._ask(self._registry.documents.get, "batch", batch_id)
            if not is_unfinished(record.data):
                return
            principal = await self._keyring.holder(record.data["key"])
            with self._keyring.lease(principal) as lease, principal.acting(lease):
                await self._work(record, run)
        except _ElsewhereError:
            raise
        except Exception as error:
            problem = as_problem(error)
            if problem is None:
                log.exception("batch %s failed", batch_id)
                problem = ProblemError("internal", "the batch failed unexpectedly; the server's log has the details")
            if not self._stopping.is_set():
                await self._fail(batch_id, [{"code": problem.code.replace("-", "_"), "message": problem.detail}])

    async def _work(self, record: DocumentRecord, run: _Run) -> None:
        """From wherever the batch stands to its end."""
        settled: DocumentRecord | None = record
        if record.data["outcome"] is None:
            file = await self._ask(self._registry.kept_files.stored, record.data["input_file_id"])
            with await self._ask.until(lambda: hold(self._registry, file)):
                settled = await self._answer_file(record, run, file.content)
        if settled is not None:
            await self._publish(settled)

    async def _answer_file(self, record: DocumentRecord, run: _Run, path: Path) -> DocumentRecord | None:
        """The batch with its outcome; ``None`` if its file is refused."""
        total, faults = await asyncio.to_thread(self._check, path, record.data["endpoint"])
        if faults:
            fields = {"status": "failed", "failed_at": int(time.time()), "faults": faults}
            await self._note(record.id, **fields)
            return None
        await self._move(record.id, "in_progress", total=total)
        if record.data["status"] == "cancelling":
            run.ending.set()
        opening = partial(asyncio.to_thread, PartialResults, self._folder / record.id)
        with await self._when_room(record.id, opening) as results:
            outcome = await self._answer(record, run, path, results)
            return await self._settle(record.id, outcome, results)

    def _check(self, path: Path, endpoint: str) -> tuple[int, list[dict[str, Any]]]:
        """How many requests there are, and what is wrong with them."""
        total, faults = 0, []
        for line in self._read(path):
            total += 1
            if isinstance(line, DataError):
                faults.append({"code": "invalid_data", "message": str(line), "line": total})
            elif line.url != endpoint:
                message = f"the request is for {line.url}, the batch for {endpoint}"
                faults.append({"code": "mismatched_endpoint", "message": message, "line": total, "param": "url"})
            if len(faults) == _MOST_FAULTS:
                break
        return total, faults

    async def _answer(self, record: DocumentRecord, run: _Run, path: Path, results: PartialResults) -> str:
        """Ask what is not answered yet; how it ended."""
        if run.ending.is_set():
            return "cancelled"
        lines = (line for line in self._read(path) if isinstance(line, BatchLine))
        left = (line for line in lines if line.custom_id not in results.done)
        run.asking = asyncio.ensure_future(self._ask_all(record.id, left, results))
        watching = asyncio.create_task(self._watch(record.id))
        try:
            async with asyncio.timeout(record.data["expires_at"] - time.time()):
                await run.asking
        except TimeoutError:
            await asyncio.to_thread(_expire, results, self._read(path))
            return "expired"
        except asyncio.CancelledError:
            if not run.ending.is_set() or self._stopping.is_set():
                raise
            return "cancelled"
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            watching.cancel()
            run.asking.cancel()
            await asyncio.gather(watching, run.asking, return_exceptions=True)
        return "completed"

    async def _watch(self, batch_id: str) -> None:
        """End a batch that another server was told to cancel, or has taken over, also while it gets no answers."""
        while True:
            await asyncio.sleep(_LOOK)
            data = (await self._ask(self._registry.documents.get, "batch", batch_id)).data
            if data["status"] == "cancelling" or data["server"] != self._registry.server:
                return self.cancel(batch_id)

    async def _ask_all(self, batch_id: str, lines: Iterator[BatchLine], results: PartialResults) -> None:
        """In turn with other batches. Raises an ``ExceptionGroup`` of what ends the batch."""
        noted = time.monotonic()

        async def work() -> None:
            nonlocal noted
            for line in lines:
                await self._when_room(batch_id, partial(_add, results, await self._result(line)))
                if time.monotonic() - noted >= _PACE:
                    noted = time.monotonic()
                    await self._note(batch_id, counts=dict(results.counts))

        async with self._turns, asyncio.TaskGroup() as group:
            for _ in range(self._width):
                group.create_task(work())

    async def _result(self, line: BatchLine) -> dict[str, Any]:
        """One line of a result file. What may go better later is asked again then."""
        while True:
            try:
                status, body = await self._call(line.url, line.body, self._places)
            except ProblemError as error:
                if error.code == "unauthorized":
                    raise
                await asyncio.sleep(error.retry_after or 1.0)
                continue
            identity = _request_id()
            response = {"status_code": status, "request_id": identity, "body": body}
            return {"id": identity, "custom_id": line.custom_id, "response": response, "error": None}

    # Where a batch stands

    async def _settle(
        self, batch_id: str, outcome: str, results: PartialResults, faults: list[dict[str, Any]] | None = None
    ) -> DocumentRecord:
        """Write down how the batch ended and what its files will be called, so that they are stored only once."""
        names = {
            field: Documents.new_id("file") if path.stat().st_size else None
            for field, path in (("output_file_id", results.output), ("error_file_id", results.errors))
        }
        counts = dict(results.counts)
        return await self._move(batch_id, "finalizing", outcome=outcome, faults=faults, counts=counts, **names)

    async def _publish(self, record: DocumentRecord) -> None:
        """Store the results as files and end the batch."""
        folder, data = self._folder / record.id, record.data
        for field, name in (("output_file_id", "output.jsonl"), ("error_file_id", "errors.jsonl")):
            if data[field] is not None:
                lifetime = data["output_lifetime"]
                expires_at = None if lifetime is None else int(time.time()) + lifetime
                storing = partial(self._ask, self._store, record, folder / name, data[field], expires_at)
                await self._when_room(record.id, storing)
        # The last word, whatever was asked meanwhile.
        at = {f"{data['outcome']}_at": int(time.time())}
        await self._note(record.id, status=data["outcome"], **at)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _when_room(self, batch_id: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """What ``attempt`` gives as soon as the disk has room for it."""
        while True:
            try:
                with storage_errors(self._folder):
                    return await attempt()
            except StorageFullError as error:
                log.warning("batch %s waits: %s", batch_id, error)
            await asyncio.sleep(_ROOM)

    def _store(self, record: DocumentRecord, source: Path, identity: str, expires_at: int | None) -> None:
        self._require_own(self._registry.documents.get("batch", record.id).data)
        if self._registry.documents.by_ids("file", [identity]):
            return  # by a server that was killed afterwards
        # Whose the batch is, also where their key has ended.
        self._registry.kept_files.add(
            source,
            filename=f"{record.id}_{source.name}",
            purpose="batch_output",
            identity=identity,
            expires_at=expires_at,
            like=record,
        )

    async def _move(self, batch_id: str, status: str, **fields: Any) -> DocumentRecord:
        """To the next state, unless the batch is to be cancelled: that stays to be seen."""

        def change(data: dict[str, Any]) -> dict[str, Any]:
            if data["status"] == "cancelling":
                return fields
            at = f"{status}_at"
            return {**fields, "status": status, at: data.get(at) or int(time.time())}

        return await self._edit(batch_id, change)

    async def _note(self, batch_id: str, **fields: Any) -> DocumentRecord:
        return await self._edit(batch_id, lambda data: fields)

    async def _edit(self, batch_id: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> DocumentRecord:
        """Write down something about a batch, unless another server has taken it over."""

        def change_own(data: dict[str, Any]) -> dict[str, Any]:
            self._require_own(data)
            return change(data)

        editing = partial(self._ask, self._registry.documents.edit, "batch", batch_id, change_own)
        return await self._when_room(batch_id, editing)

    def _require_own(self, data: dict[str, Any]) -> None:
        if data["server"] != self._registry.server:
            raise _ElsewhereError

    async def _fail(self, batch_id: str, faults: list[dict[str, Any]]) -> None:
        """End a batch with what of it is answered."""
        record = await self._ask(self._registry.documents.get, "batch", batch_id)
        if record.data["outcome"] is None:
            with await asyncio.to_thread(PartialResults, self._folder / batch_id) as results:
                record = await self._settle(batch_id, "failed", results, faults)
        await self._publish(record)


class _Run:
    """A batch at work."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.asking: asyncio.Future[None] | None = None
        #: Nothing more of it is to be asked.
        self.ending = asyncio.Event()


async def _add(results: PartialResults, result: dict[str, Any]) -> None:
    results.add(result)


def _expire(results: PartialResults, lines: Iterator[BatchLine | DataError]) -> None:
    """Say of each request that was not answered why."""
    error = {"code": "batch_expired", "message": "This request could not be answered before the batch expired."}
    for line in lines:
        if isinstance(line, BatchLine) and line.custom_id not in results.done:
            results.add({"id": _request_id(), "custom_id": line.custom_id, "response": None, "error": error})


def _request_id() -> str:
    return f"batch_req_{Documents.new_id('batch').removeprefix('batch_')}"
