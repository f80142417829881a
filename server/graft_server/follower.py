"""Notices what other servers of the same registry change, so that this one acts on it within a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from graft_server.registry import Registry, RegistryError

log = logging.getLogger(__name__)

#: Seconds between two looks.
_PAUSE = 0.5


class Follower:
    """Looks at the number of the registry's last change again and again, and calls ``on_change`` where it has grown.

    Requests do not wait for this: they are routed by what the registry says when they come. It is for what a server
    keeps beside the registry, and for what it does by itself.
    """

    def __init__(self, registry: Registry, on_change: Callable[[], Awaitable[None]]) -> None:
        self._registry = registry
        self._on_change = on_change
        self._away = False

    async def run(self) -> None:
        """Go on until cancelled. A database that is away is asked again, and a failure in acting on a change is logged:
        the next change is another try."""
        seen = -1
        while True:
            try:
                newest = await asyncio.to_thread(self._registry.newest_change)
                if self._away:
                    log.info("the registry's database answers again")
                    self._away = False
                if newest != seen:
                    seen = newest
                    await self._on_change()
            except RegistryError as error:
                if not self._away:
                    log.warning("changes of other servers can't be seen: %s", error)
                self._away, seen = True, -1
            except Exception:
                log.exception("a change of the registry could not be acted on")
            await asyncio.sleep(_PAUSE)
