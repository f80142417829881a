"""What the servers of a registry know of each other: which of them there are, and which versions each has requests for,
so that none of those is deleted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Set

from graft_server.registry import Registry, RegistryError
from graft_server.registry.servers import BELIEVED
from graft_server.serving.traffic import Traffic

log = logging.getLogger(__name__)

#: Seconds between two looks at the requests.
_PAUSE = 0.5
#: Seconds between two looks at the other servers.
_LOOK = 2.0

_APART = (
    "other servers use this registry, and `artefacts_url` is not set: each answers only with adapters whose files lie "
    "in its own data folder. Requests for what was published through another one fail, and so do their promotes, and a "
    "job waits for the server that has its dataset. Set `artefacts_url` (GRAFT_ARTEFACTS_URL) on all of them to one "
    "shared folder or bucket"
)


class Presence:
    """Tells that this server is there, what is in flight when that changes, and looks who else is there.
    ``on_servers`` is called in the event loop with their number, this one included, when it changes."""

    def __init__(
        self, registry: Registry, traffic: Traffic, on_servers: Callable[[int], None] = lambda number: None
    ) -> None:
        self._registry = registry
        self._traffic = traffic
        self._on_servers = on_servers
        self._told: set[str] = set()
        self._told_at = self._looked_at = self._failed_at = float("-inf")
        self._others: Set[str] = frozenset()

    @property
    def servers(self) -> int:
        """How many servers the registry has, this one included."""
        return 1 + len(self._others)

    @property
    def warnings(self) -> list[str]:
        """What whoever runs the servers should change."""
        return [_APART] if self._others and not self._registry.shares_files else []

    async def run(self) -> None:
        """Go on until cancelled. While the database is away nothing can be deleted either."""
        while True:
            try:
                await self._tell(self._traffic.refs())
                await self._look()
            except Exception as error:  # whatever it is, the next try may work
                self._failed_at = time.monotonic()
                known = isinstance(error, RegistryError)
                log.log(logging.DEBUG if known else logging.WARNING, "other servers can't be asked or told: %s", error)
            await asyncio.sleep(_PAUSE)

    async def leave(self) -> None:
        """This server is about to end: the others need not wait until it is no longer believed to be there."""
        try:
            await asyncio.to_thread(self._registry.leave)
        except RegistryError as error:
            log.debug("other servers are not told that this one ends: %s", error)

    async def _tell(self, refs: set[str]) -> None:
        stale = time.monotonic() - self._told_at > BELIEVED.total_seconds() / 3
        if refs != self._told or stale:
            await asyncio.to_thread(self._registry.report_in_flight, refs)
            self._told, self._told_at = refs, time.monotonic()

    async def _look(self) -> None:
        if time.monotonic() - self._looked_at < _LOOK:
            return
        others: Set[str] = await asyncio.to_thread(self._registry.other_servers)
        self._looked_at = time.monotonic()
        if self._looked_at - self._failed_at < BELIEVED.total_seconds():
            # The database was away: that nobody was heard of does not mean that nobody is there.
            others |= self._others
        if others == self._others:
            return
        warned, before = self.warnings, self.servers
        self._others = others
        for warning in self.warnings if not warned else ():
            log.warning("%s", warning)
        if self.servers != before:
            log.info("servers of this registry: %d", self.servers)
            self._on_servers(self.servers)
