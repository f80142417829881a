"""Which waiting request may enter the engine next: pure state, without clock, event loop or torch.

Each adapter has a queue, and so has the base model; a request costs as many tokens as it may make the engine compute.
Three things decide together, each in a module of its own:

- ``turns``: at most ``slots`` distinct adapters are in flight; those beyond wait for a slot in the order in which they
  came.
- ``drr``: the queues that have a slot take turns for the ``max_running`` places by deficit round robin on tokens, so
  that a queue's length buys it nothing.
- ``shares``: an adapter that asks for more than others has so few requests in flight that those of the others are
  not slowed down by it beyond a bound.

Background requests take what interactive ones leave, but at least ``BACKGROUND_SHARE`` of the tokens while they wait.
Nothing here happens with time alone: whatever becomes possible does so at the next arrival or end.
"""

from __future__ import annotations

from collections import Counter

from graft_server.admission.drr import RoundRobin
from graft_server.admission.pace import Pace
from graft_server.admission.queues import Adapter, Queue, Ticket
from graft_server.admission.shares import Limits, Shares
from graft_server.admission.turns import Turns

#: Of the tokens that enter while interactive and background requests wait for the same places.
BACKGROUND_SHARE = 1 / 8
#: Quanta that an adapter's turn with a slot is worth while another waits for one.
_TURN_QUANTA = 16
#: A background request waits for a slot as if it had come so many longest turns later.
_BACKGROUND_TURNS = 4


class FullError(Exception):
    """Too many requests wait already. ``retry_after`` is an estimate in seconds."""

    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class Gate:
    """Admits tickets to the engine. The caller gives the time, in seconds of any monotonic clock."""

    def __init__(
        self,
        *,
        slots: int,
        max_running: int,
        max_queued: int,
        max_queued_per_adapter: int | None = None,
        quantum: int = 512,
        turn_seconds: float = 2.0,
        shares: Shares | None = None,
    ) -> None:
        self.slots = slots
        self.max_running = max_running
        self.max_queued = max_queued
        self.max_queued_per_adapter = max_queued_per_adapter or max(1, max_queued // 4)
        self.pace = Pace()
        self._shares = shares or Shares(max_running)
        self._turns = Turns(
            slots, tokens=_TURN_QUANTA * quantum, seconds=turn_seconds, patience=_BACKGROUND_TURNS * turn_seconds
        )
        #: Queues that hold something, by adapter and class; those that have a slot are in the ring of their class.
        self._queues: dict[tuple[Adapter, bool], Queue] = {}
        self._rings = {background: RoundRobin(quantum) for background in (False, True)}
        self._owed = 0.0
        self._arrivals = 0
        self._queued = 0
        self._queued_tokens = 0
        self._running: set[Ticket] = set()
        self._rows: Counter[Adapter] = Counter()
        self._background_rows: Counter[Adapter] = Counter()
        self._background = 0
        self._retiring: set[int] = set()
        #: No more requests of the background may enter for now.
        self._crowded = False

    # What is going on

    @property
    def waiting(self) -> int:
        return self._queued

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def adapters_running(self) -> int:
        """Distinct adapters in flight; the base model is none."""
        return len((self._rows.keys() | self._background_rows.keys()) - {None})

    @property
    def waiting_by_adapter(self) -> dict[Adapter, int]:
        """Requests that wait, for each adapter that has some; ``None`` is the base model."""
        counts: Counter[Adapter] = Counter()
        for queue in self._queues.values():
            counts[queue.adapter] += len(queue)
        return dict(counts)

    @property
    def running_by_adapter(self) -> dict[Adapter, int]:
        """Requests in the engine, for each adapter that has some; ``None`` is the base model."""
        return dict(self._rows + self._background_rows)

    def oldest_wait(self, now: float) -> float:
        """Seconds that the longest waiting request has waited; 0 where none waits."""
        return max((now - queue.head.arrived for queue in self._queues.values()), default=0.0)

    def queued(self, adapter: Adapter) -> int:
        """Requests of one adapter that wait."""
        return sum(len(self._queues.get((adapter, background), ())) for background in (False, True))

    def in_flight(self, adapter: Adapter) -> bool:
        """Whether the engine has requests of an adapter."""
        return adapter in self._rows or adapter in self._background_rows

    # What happens

    def offer(self, adapter: Adapter, cost: int = 1, *, now: float, background: bool = False) -> Ticket:
        """Join the queue of an adapter with a request of ``cost`` tokens.

        Raises:
            FullError: ``max_queued`` requests wait already, or ``max_queued_per_adapter`` in this queue.
        """
        queue = self._queues.get((adapter, background)) or Queue(adapter, background)
        self._refuse_overflow(queue)
        ticket = Ticket(self._arrivals, adapter, max(1, cost), background, now)
        self._arrivals += 1
        queue.append(ticket)
        self._queued += 1
        self._queued_tokens += ticket.cost
        if not background:
            self._shares.arrived(adapter, now)
        if len(queue) == 1:
            self._queues[adapter, background] = queue
            self._line_up(adapter, now)
        return ticket

    def admit(self, now: float) -> list[Ticket]:
        """Take every ticket that may enter now out of the queue, in the order in which they enter."""
        self.pace.pass_time(now, self.running)
        admitted: list[Ticket] = []
        if not self._queued:
            return admitted
        self._hand_over(now)
        if self.running >= self.max_running:
            return admitted
        waiting = [queue.adapter for queue in self._rings[False]]
        limits = self._shares.limits(self.pace.knee, self._rows, waiting, now)
        while self.running < self.max_running:
            queue = self._next(limits)
            if queue is None:
                break
            admitted.append(self._enter(queue, limits, now))
        self._crowded = self._background >= limits.background
        return admitted

    def release(self, ticket: Ticket, now: float, *, token_seconds: float | None = None) -> None:
        """The request is over, or gave up while it waited. Releasing a ticket twice is harmless.

        ``token_seconds`` is how long it took from one of its tokens to the next, where that was measured.
        """
        if ticket in self._running:
            self._leave_engine(ticket, now, token_seconds)
        else:
            queue = self._queues.get((ticket.adapter, ticket.background))
            if queue is None or ticket not in queue:
                return
            self._leave_queue(queue, ticket)
        if not ticket.background:
            self._shares.left(ticket.adapter, now)
        self._line_up(ticket.adapter, now)

    def pin(self, adapter: int, now: float) -> None:
        """Keep one of the slots for an adapter. Those that hold more than are left give them up when their turns are
        over."""
        self._turns.pin(adapter)
        self._line_up(adapter, now)

    def unpin(self, adapter: int) -> None:
        """Share an adapter's slot again; one that is not pinned is left as it is."""
        self._turns.unpin(adapter)

    def retry_after(self, queue: Queue | None = None) -> float:
        """Seconds until all that waits has been served, or what waits in one queue; between 1 and 60."""
        tokens = self._queued_tokens if queue is None else queue.tokens * len(self._queues)
        rate = self.pace.rate
        return min(60.0, max(1.0, tokens / rate)) if rate else 1.0

    # How

    def _refuse_overflow(self, queue: Queue) -> None:
        if self._queued >= self.max_queued:
            text = f"{self._queued} requests are waiting already, which is the most this server queues"
            raise FullError(text, self.retry_after())
        if len(queue) >= self.max_queued_per_adapter:
            whom = "the base model" if queue.adapter is None else "this adapter"
            text = f"{len(queue)} requests are waiting for {whom} already, which is the most this server queues for one"
            raise FullError(text, self.retry_after(queue))

    def _line_up(self, adapter: Adapter, now: float) -> None:
        """Put an adapter's queues where they belong: into their rings with a slot, else the adapter in line for one."""
        queues = [queue for background in (False, True) if (queue := self._queues.get((adapter, background)))]
        if adapter is not None and adapter not in self._turns:
            if queues:
                self._turns.want(adapter, background=queues[0].background, now=now)
            else:
                self._turns.give_up(adapter)
        if adapter is not None and adapter not in self._turns:
            return
        if adapter is not None and self._turns.idle(adapter) and not queues:
            self._turns.give_up(adapter)
        for queue in queues:
            if queue not in self._rings[queue.background]:
                self._rings[queue.background].add(queue)

    def _hand_over(self, now: float) -> None:
        """Take slots from adapters whose turn is over and whose requests have run out, and give free ones away."""
        for adapter in self._turns.retiring(now, crowded=self._crowded):
            if self._turns.idle(adapter):
                self._turns.give_up(adapter)
                for background, ring in self._rings.items():
                    if queue := self._queues.get((adapter, background)):
                        ring.discard(queue)
                self._line_up(adapter, now)
        for adapter in self._turns.grant(now):
            self._line_up(adapter, now)
        self._retiring = self._turns.retiring(now, crowded=self._crowded)

    def _next(self, limits: Limits) -> Queue | None:
        """The queue whose head enters next."""
        background = None
        # Not asked where none may enter: whose turn it is would be lost.
        if self._background < limits.background:
            background = self._rings[True].pick(lambda queue: queue.adapter not in self._retiring)
        if background is not None and self._owed >= background.head.cost:
            self._owed -= background.head.cost
            return background
        interactive = self._rings[False].pick(
            lambda queue: queue.adapter not in self._retiring and self._rows[queue.adapter] < limits.of(queue.adapter)
        )
        if interactive is None:
            return background
        if background is not None:
            self._owed += interactive.head.cost * BACKGROUND_SHARE
        return interactive

    def _enter(self, queue: Queue, limits: Limits, now: float) -> Ticket:
        ticket, adapter = queue.head, queue.adapter
        self._leave_queue(queue, ticket, charge=True)
        self._running.add(ticket)
        ticket.admitted, ticket.row_seconds = now, self.pace.row_seconds
        if queue.background:
            self._background_rows[adapter] += 1
            self._background += 1
        else:
            self._rows[adapter] += 1
            limits.entered(adapter, self._rows[adapter])
        if adapter is not None:
            self._turns.entered(adapter, ticket.cost, background=queue.background)
            self._retiring = self._turns.retiring(now)
        return ticket

    def _leave_queue(self, queue: Queue, ticket: Ticket, *, charge: bool = False) -> None:
        queue.remove(ticket)
        ring = self._rings[queue.background]
        if charge:
            ring.charge(queue, ticket.cost)
        if not queue:
            ring.discard(queue)
            del self._queues[queue.adapter, queue.background]
        self._queued -= 1
        self._queued_tokens -= ticket.cost

    def _leave_engine(self, ticket: Ticket, now: float, token_seconds: float | None) -> None:
        self.pace.pass_time(now, self.running)
        self.pace.served(ticket.cost)
        seconds = now - (ticket.admitted or 0.0)
        if token_seconds and seconds > 0:
            self.pace.decoded((self.pace.row_seconds - ticket.row_seconds) / seconds, token_seconds)
        self._running.remove(ticket)
        self._background -= ticket.background
        rows = self._background_rows if ticket.background else self._rows
        rows[ticket.adapter] -= 1
        if not rows[ticket.adapter]:
            del rows[ticket.adapter]
        if ticket.adapter is not None:
            self._turns.left(ticket.adapter)
