"""Which waiting request may enter the engine next: pure state, without clock, event loop or torch.

At most ``slots`` distinct adapters and ``max_running`` requests are in flight. Requests enter in the order of
their arrival, except that one whose adapter finds no free slot is overtaken by later ones that do. After
``max_overtakes`` of these the oldest request becomes a barrier: nothing enters before it, the requests in flight
run out, and a slot falls free. So the device stays full and nobody starves.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

#: How fast the mean time in the engine follows new requests (exponentially weighted).
_SMOOTHING = 0.1


class FullError(Exception):
    """Too many requests wait already. ``retry_after`` is an estimate in seconds."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests are waiting already, which is the most this server queues")
        self.retry_after = retry_after


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way through the gate. ``adapter`` is an engine id, ``None`` for the base model."""

    number: int
    adapter: int | None
    overtaken: int = 0
    admitted_at: float | None = None


class Gate:
    """Admits tickets to the engine. The caller gives the time, in seconds of any monotonic clock."""

    def __init__(self, *, slots: int, max_running: int, max_queued: int, max_overtakes: int = 64) -> None:
        self.slots = slots
        self.max_running = max_running
        self.max_queued = max_queued
        self.max_overtakes = max_overtakes
        self._arrivals = 0
        # One queue an adapter: only heads can enter, so admitting looks at adapters, not at requests.
        self._waiting: dict[int | None, deque[Ticket]] = {}
        self._queued = 0
        self._running: set[Ticket] = set()
        self._held: Counter[int] = Counter()
        self._mean_seconds = 1.0

    @property
    def waiting(self) -> int:
        return self._queued

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def adapters_running(self) -> int:
        """Distinct adapters in flight; the base model is none."""
        return len(self._held)

    def offer(self, adapter: int | None) -> Ticket:
        """Join the queue.

        Raises:
            FullError: ``max_queued`` requests wait already.
        """
        if self._queued >= self.max_queued:
            raise FullError(self._queued, self.retry_after())
        ticket = Ticket(self._arrivals, adapter)
        self._arrivals += 1
        self._waiting.setdefault(adapter, deque()).append(ticket)
        self._queued += 1
        return ticket

    def admit(self, now: float) -> list[Ticket]:
        """Take every ticket that may enter now out of the queue, in the order in which they enter."""
        admitted: list[Ticket] = []
        while self._queued and len(self._running) < self.max_running:
            oldest = min((queue[0] for queue in self._waiting.values()), key=lambda ticket: ticket.number)
            if self._fits(oldest.adapter):
                ticket = oldest
            elif oldest.overtaken >= self.max_overtakes:
                break
            else:
                fitting = [queue[0] for adapter, queue in self._waiting.items() if self._fits(adapter)]
                if not fitting:
                    break
                ticket = min(fitting, key=lambda ticket: ticket.number)
                oldest.overtaken += 1
            self._leave_queue(ticket)
            ticket.admitted_at = now
            self._running.add(ticket)
            if ticket.adapter is not None:
                self._held[ticket.adapter] += 1
            admitted.append(ticket)
        return admitted

    def release(self, ticket: Ticket, now: float) -> None:
        """The request is over, or gave up while it waited. Releasing a ticket twice is harmless."""
        if ticket in self._running:
            self._running.remove(ticket)
            if ticket.adapter is not None:
                self._held[ticket.adapter] -= 1
                if not self._held[ticket.adapter]:
                    del self._held[ticket.adapter]
            seconds = now - (ticket.admitted_at or 0.0)
            self._mean_seconds += _SMOOTHING * (seconds - self._mean_seconds)
        elif ticket in self._waiting.get(ticket.adapter, ()):
            self._leave_queue(ticket)

    def retry_after(self) -> float:
        """Seconds until the queue as it stands has been served, between 1 and 60."""
        rounds = self._queued / self.max_running
        return min(60.0, max(1.0, rounds * self._mean_seconds))

    def _fits(self, adapter: int | None) -> bool:
        return adapter is None or adapter in self._held or len(self._held) < self.slots

    def _leave_queue(self, ticket: Ticket) -> None:
        queue = self._waiting[ticket.adapter]
        queue.remove(ticket)
        if not queue:
            del self._waiting[ticket.adapter]
        self._queued -= 1
