"""The gate on an event loop: a request waits here for its turn and leaves when it is done, however it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from graft_server.admission.deadlines import before
from graft_server.admission.gate import Gate
from graft_server.admission.queues import Ticket
from graft_server.engine.base import AdapterSource

#: Told of a version that requests wait for and that the engine has not been asked for yet.
OnEnqueue = Callable[[AdapterSource], None]


@dataclass(slots=True)
class Visit:
    """A request on its way through: the seconds it waited and, if its holder tells, the seconds from one of its tokens
    to the next."""

    waited: float
    token_seconds: float | None = None


class Turnstile:
    """Lets requests through a ``Gate``. Used from one event loop only."""

    def __init__(self, gate: Gate, *, on_enqueue: OnEnqueue | None = None) -> None:
        self.gate = gate
        self._on_enqueue = on_enqueue
        self._turns: dict[Ticket, asyncio.Event] = {}

    def pin(self, engine_id: int) -> None:
        """Keep one of the slots for an adapter, whether it is asked for or not."""
        self.gate.pin(engine_id, time.monotonic())
        self._advance()

    def unpin(self, engine_id: int) -> None:
        """Share an adapter's slot with the others again."""
        self.gate.unpin(engine_id)
        self._advance()

    @asynccontextmanager
    async def enter(
        self,
        source: AdapterSource | None,
        cost: int = 1,
        *,
        background: bool = False,
        deadline: float | None = None,
    ) -> AsyncIterator[Visit]:
        """Wait for a turn until ``deadline`` (by the event loop's clock) and hold it for the body of the ``with``.

        ``source`` ``None`` is the base model; ``cost`` is in tokens.

        Raises:
            FullError: too many requests wait already.
            DeadlineError: the turn did not come in time.
        """
        arrived = time.monotonic()
        adapter = source.engine_id if source else None
        ticket = self.gate.offer(adapter, cost, now=arrived, background=background)
        turn = self._turns[ticket] = asyncio.Event()
        visit = Visit(0.0)
        try:
            self._advance()
            if source and self._on_enqueue and not self.gate.in_flight(adapter) and self.gate.queued(adapter) == 1:
                self._on_enqueue(source)
            await before(deadline, turn.wait(), waiting=True)
            visit.waited = time.monotonic() - arrived
            yield visit
        finally:
            self._turns.pop(ticket, None)
            self.gate.release(ticket, time.monotonic(), token_seconds=visit.token_seconds)
            self._advance()

    def _advance(self) -> None:
        for ticket in self.gate.admit(time.monotonic()):
            self._turns[ticket].set()
