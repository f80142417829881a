"""Shadows: a copy of a request for another version, served in the background and written down beside the answer.

One JSON line a request in ``shadows/ROUTE.jsonl`` of the data folder; a full file becomes ``ROUTE.jsonl.1``, so that a
route keeps at most two. The caller never waits for a shadow and never sees it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from graft_client.schemas.routes import ShadowRecord
from graft_server.problems import ProblemError
from graft_server.quotas.account import current_account
from graft_server.routing.resolver import Standby
from graft_server.serving.pipeline import Plan

if TYPE_CHECKING:
    from graft_server.serving.predictor import Answer, Predictor

log = logging.getLogger(__name__)

FOLDER = "shadows"
#: Copies on their way at once; what comes beyond is not copied.
_MOST = 64
_FILE_BYTES = 16 << 20


class Shadows:
    """Serves copies and keeps what they answered."""

    def __init__(self, folder: Path, *, file_bytes: int = _FILE_BYTES) -> None:
        self._folder = folder
        self._file_bytes = file_bytes
        self._copies: set[asyncio.Task[None]] = set()
        self._writing = threading.Lock()
        self.dropped = 0

    def copy(self, predictor: Predictor, plan: Plan, answer: Answer, shadow: Standby) -> None:
        """Serve the request again, by ``shadow``, some time soon."""
        if len(self._copies) >= _MOST:
            self.dropped += 1
            return
        task = asyncio.create_task(self._serve(predictor, plan, answer, shadow))
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    async def settled(self) -> None:
        """Wait for the copies that are on their way."""
        await asyncio.gather(*self._copies, return_exceptions=True)

    async def close(self) -> None:
        """End what is on its way."""
        for task in self._copies:
            task.cancel()
        await self.settled()

    def records(self, route: str, limit: int) -> list[ShadowRecord]:
        """The newest records of a route, the newest first. Blocking."""
        lines: deque[str] = deque(maxlen=limit)
        for file in (self._file(route, full=True), self._file(route)):
            if file.exists():
                with file.open(encoding="utf-8") as stream:
                    lines.extend(line for line in stream if line.endswith("\n"))
        return [ShadowRecord.model_validate_json(line) for line in reversed(lines)]

    async def _serve(self, predictor: Predictor, plan: Plan, answer: Answer, shadow: Standby) -> None:
        via = plan.route.via
        assert via is not None
        # The caller asked once, and pays once.
        current_account.set(None)
        request = plan.request.model_dump(mode="json") if plan.request is not None else None
        record = ShadowRecord(
            time=datetime.now(UTC),
            adapter=answer.route.ref,
            shadow=shadow.ref,
            request=request,
            text=answer.parsed.text,
            seconds=answer.timings.total,
        )
        try:
            other = await predictor.instead(plan, shadow)
            copied = await predictor.answer(other, predictor.terms(background=True), observed=False)
            told = {"shadow_text": copied.parsed.text, "shadow_seconds": copied.timings.total}
        except ProblemError as error:
            told = {"error": error.detail}
        except Exception:
            log.exception("the shadow of route %s failed", via.name)
            told = {"error": "the server failed on it"}
        try:
            await asyncio.to_thread(self._write, via.name, record.model_copy(update=told))
        except OSError as error:
            log.warning("the shadow of route %s could not be written down: %s", via.name, error)

    def _write(self, route: str, record: ShadowRecord) -> None:
        file = self._file(route)
        with self._writing:
            self._folder.mkdir(exist_ok=True)
            if file.exists() and file.stat().st_size >= self._file_bytes:
                file.replace(self._file(route, full=True))
            with file.open("a", encoding="utf-8") as stream:
                stream.write(record.model_dump_json() + "\n")

    def _file(self, route: str, *, full: bool = False) -> Path:
        return self._folder / (f"{route}.jsonl.1" if full else f"{route}.jsonl")
