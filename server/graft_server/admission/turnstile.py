"""The gate on an event loop: a request waits here for its turn and leaves when it is done, however it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from graft_server.admission.gate import Gate, Ticket


class Turnstile:
    """Lets requests through a ``Gate``. Used from one event loop only."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._turns: dict[Ticket, asyncio.Event] = {}

    @asynccontextmanager
    async def enter(self, adapter: int | None) -> AsyncIterator[float]:
        """Wait for a turn and hold it for the body of the ``with``; yields the seconds waited.

        Raises:
            FullError: too many requests wait already.
        """
        arrived = time.monotonic()
        ticket = self.gate.offer(adapter)
        turn = self._turns[ticket] = asyncio.Event()
        self._advance()
        try:
            await turn.wait()
            yield time.monotonic() - arrived
        finally:
            self._turns.pop(ticket, None)
            self.gate.release(ticket, time.monotonic())
            self._advance()

    def _advance(self) -> None:
        for ticket in self.gate.admit(time.monotonic()):
            self._turns[ticket].set()
