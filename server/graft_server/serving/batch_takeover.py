"""Batches of servers that are gone: another server of the registry answers them in their place."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Set
from typing import Any

from graft_server.registry import Registry
from graft_server.registry.documents import DocumentRecord
from graft_server.registry.errors import RegistryError, UnknownError
from graft_server.serving.batches import UNANSWERED, is_unfinished

log = logging.getLogger(__name__)

#: Seconds between two looks at the batches of other servers, at most.
_LOOK = 30.0


class BatchTakeover:
    """Looks for batches whose server has been away for ``gone`` seconds. Of several servers that find one, the first
    has it; it calls ``begin`` with the batch's id in the event loop.

    What the lost server had answered lay in its data folder, so that all requests of the batch are asked again; one
    that only starts again should be back before. One that was cut off ends its work when it sees whose the batch is.
    """

    def __init__(self, registry: Registry, begin: Callable[[str], None], *, gone: float) -> None:
        self._registry = registry
        self._begin = begin
        self._gone = gone
        #: Servers that were not there when they were looked for, with the first time, by ``time.monotonic``.
        self._missing: dict[str, float] = {}

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.sleep(min(_LOOK, self._gone / 4))
            try:
                await self._look()
            except Exception as error:  # whatever it is, the next try may work
                # Nobody could say that they are there either.
                self._missing.clear()
                known = isinstance(error, RegistryError)
                log.log(logging.DEBUG if known else logging.WARNING, "other servers' batches can't be read: %s", error)

    async def _look(self) -> None:
        batches = await asyncio.to_thread(
            self._registry.documents.list, "batch", oldest_first=True, keep=self._is_elsewhere
        )
        present: Set[str] = await asyncio.to_thread(self._registry.other_servers)
        now = time.monotonic()
        self._missing = {
            server: self._missing.get(server, now) for server in {b.data["server"] for b in batches} - present
        }
        for batch in batches:
            server = batch.data["server"]
            absent = now - self._missing.get(server, now) >= self._gone
            if absent and await asyncio.to_thread(self._claim, batch):
                log.warning("batch %s: its server %s is gone; this one goes on with it", batch.id, server)
                self._begin(batch.id)

    def _is_elsewhere(self, data: dict[str, Any]) -> bool:
        # Those without a server are of an earlier release, and taken by whoever starts.
        return is_unfinished(data) and data.get("server", self._registry.server) != self._registry.server

    def _claim(self, batch: DocumentRecord) -> bool:
        """Make the batch this server's, unless somebody did something with it meanwhile; whether it is."""
        named = [batch.data[field] for field in ("output_file_id", "error_file_id") if batch.data[field] is not None]
        stored = self._registry.documents.by_ids("file", named)
        # With all files there, only its last word is missing.
        changes = {} if batch.data["outcome"] is not None and len(stored) == len(named) else UNANSWERED
        taken = False

        def claim(data: dict[str, Any]) -> dict[str, Any]:
            nonlocal taken
            taken = all(data[field] == batch.data[field] for field in ("server", "status", "outcome"))
            return {**changes, "server": self._registry.server} if taken else {}

        self._registry.documents.edit("batch", batch.id, claim)
        for identity in stored if taken and changes else ():
            with contextlib.suppress(UnknownError):
                self._registry.kept_files.remove(identity)
        return taken
