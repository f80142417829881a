"""Tells the other servers of a registry which versions this one has requests for, so that none of them is deleted."""

from __future__ import annotations

import asyncio
import logging
import time

from graft_server.registry import Registry, RegistryError
from graft_server.registry.servers import BELIEVED
from graft_server.serving.traffic import Traffic

log = logging.getLogger(__name__)

#: Seconds between two looks at the requests.
_PAUSE = 0.5


class Presence:
    """Writes what is in flight when it changes, and often enough to be believed."""

    def __init__(self, registry: Registry, traffic: Traffic) -> None:
        self._registry = registry
        self._traffic = traffic
        self._told: set[str] = set()
        self._told_at = float("-inf")

    async def run(self) -> None:
        """Go on until cancelled. While the database is away nothing can be deleted either."""
        while True:
            try:
                await self._tell(self._traffic.refs())
            except RegistryError as error:
                log.debug("requests in flight can't be told to other servers: %s", error)
            await asyncio.sleep(_PAUSE)

    async def _tell(self, refs: set[str]) -> None:
        stale = bool(refs) and time.monotonic() - self._told_at > BELIEVED.total_seconds() / 3
        if refs != self._told or stale:
            await asyncio.to_thread(self._registry.report_in_flight, refs)
            self._told, self._told_at = refs, time.monotonic()
