"""The engine's figures for whoever looks: asked for once for all of them, and never waited for long."""

from __future__ import annotations

import asyncio
import time

from graft_server.engine.base import Engine, EngineError, EngineStats

#: Seconds that a caller waits for the engine before the last figures have to do; a long step answers within.
_PATIENCE = 1.0
#: Seconds after which an unanswered question is given up, and the next caller asks again.
_GIVE_UP = 10.0


class StatsCache:
    """At most one question to the engine is under way, however many callers wait for the answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        self._told = False
        self._told_at = time.monotonic()
        self.latest = EngineStats()

    @property
    def age(self) -> float:
        """Seconds since the engine last told its figures; before it has, since there is a cache."""
        return time.monotonic() - self._told_at

    async def get(self, *, max_age: float = 0.0) -> EngineStats:
        """Figures of at most ``max_age`` seconds ago; where the engine keeps silent, the last ones there are."""
        now = time.monotonic()
        if self._asking is None and (not self._told or self.age >= max_age):
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask())
        if self._asking is not None:
            await asyncio.wait({self._asking}, timeout=max(0.0, self._asked_at + _PATIENCE - now))
        return self.latest

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(_GIVE_UP):
                self.latest = await self._engine.stats()
            self._told, self._told_at = True, time.monotonic()
        except (EngineError, TimeoutError):
            # Its state tells what is wrong with it; the figures grow old.
            pass
        finally:
            self._asking = None
