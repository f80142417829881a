"""One device for the engine and the jobs in turns: the engine sleeps while at least one job trains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol


class Sleeper(Protocol):
    async def sleep(self) -> None: ...

    async def wake(self) -> None: ...


class DeviceTurns:
    """Owned by one event loop."""

    def __init__(self, engine: Sleeper) -> None:
        self._engine = engine
        self._training = 0
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def training(self) -> AsyncIterator[None]:
        """A job trains while this is open; the engine is woken when the last one ends, however that is.

        Raises:
            EngineError: the engine can't sleep or be woken.
        """
        async with self._lock:
            if not self._training:
                await self._engine.sleep()
            self._training += 1
        try:
            yield
        finally:
            async with self._lock:
                self._training -= 1
                if not self._training:
                    await self._engine.wake()
