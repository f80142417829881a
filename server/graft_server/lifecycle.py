"""Whether the server takes requests, and how many it is answering: what draining needs to know."""

from __future__ import annotations

import asyncio
import time


class Lifecycle:
    """Counts requests in flight; ``drain`` ends the taking of new ones. Used from one event loop only."""

    def __init__(self) -> None:
        self.started_at = time.monotonic()
        self.started_wall = time.time()
        self.in_flight = 0
        self._draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def draining(self) -> bool:
        return self._draining.is_set()

    @property
    def uptime(self) -> float:
        return time.monotonic() - self.started_at

    def enter(self) -> None:
        self.in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    def drain(self) -> None:
        self._draining.set()

    async def wait_idle(self, seconds: float) -> bool:
        """Wait until nothing is in flight; ``False`` if something still is after ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until draining begins."""
        try:
            async with asyncio.timeout(seconds):
                await self._draining.wait()
        except TimeoutError:
            pass
