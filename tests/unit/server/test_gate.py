"""The gate loses nothing, admits nothing twice, keeps to its slots and lets nobody starve."""

from __future__ import annotations

import time
from collections import Counter
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from graft_server.admission.gate import BACKGROUND_SHARE, FullError, Gate
from graft_server.admission.queues import Ticket

ADAPTERS = st.one_of(st.none(), st.integers(0, 4))


class GateMachine(RuleBasedStateMachine):
    """Arrivals, ends, hang-ups and pins in any order."""

    tickets = Bundle("tickets")

    @initialize(
        slots=st.integers(1, 3),
        running=st.integers(1, 6),
        queued=st.integers(1, 10),
        each=st.integers(1, 5),
        quantum=st.integers(1, 30),
        turn=st.integers(0, 10),
    )
    def begin(self, slots: int, running: int, queued: int, each: int, quantum: int, turn: int) -> None:
        self.gate = Gate(
            slots=slots,
            max_running=running,
            max_queued=queued,
            max_queued_per_adapter=each,
            quantum=quantum,
            turn_seconds=turn,
        )
        self.now = 0.0
        self.waiting: list[Ticket] = []
        self.running: list[Ticket] = []
        self.admitted: set[int] = set()
        self.pinned: set[int] = set()
        #: Most adapters that can be in flight: one that becomes pinned or unpinned keeps what it has meanwhile.
        self.most_adapters = slots

    def advance(self) -> None:
        for ticket in self.gate.admit(self.now):
            assert ticket.number not in self.admitted, "admitted twice"
            self.admitted.add(ticket.number)
            self.waiting.remove(ticket)
            assert not [
                other
                for other in self.waiting
                if (other.adapter, other.background) == (ticket.adapter, ticket.background)
                and other.number < ticket.number
            ], "overtaken within its queue"
            self.running.append(ticket)

    @rule(seconds=st.floats(0, 10))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.advance()

    @rule(target=tickets, adapter=ADAPTERS, cost=st.integers(1, 60), background=st.booleans())
    def arrive(self, adapter: int | None, cost: int, background: bool):
        queue = [each for each in self.waiting if (each.adapter, each.background) == (adapter, background)]
        if len(self.waiting) == self.gate.max_queued or len(queue) == self.gate.max_queued_per_adapter:
            with pytest.raises(FullError) as refused:
                self.gate.offer(adapter, cost, now=self.now, background=background)
            assert 1 <= refused.value.retry_after <= 60
            return None
        ticket = self.gate.offer(adapter, cost, now=self.now, background=background)
        self.waiting.append(ticket)
        self.advance()
        return ticket

    @rule(ticket=consumes(tickets), seconds=st.floats(0, 2))
    def end(self, ticket: Ticket | None, seconds: float) -> None:
        if ticket is None:
            return
        self.now += seconds
        self.gate.release(ticket, self.now)
        # One that has ended already: releasing it again must change nothing, which the invariants check.
        for tickets in (self.running, self.waiting):
            if ticket in tickets:
                tickets.remove(ticket)
        self.advance()

    @rule(adapter=st.integers(0, 4))
    def pin(self, adapter: int) -> None:
        if adapter not in self.pinned and len(self.pinned) < self.gate.slots - 1:
            self.gate.pin(adapter, self.now)
            self.pinned.add(adapter)
            self.most_adapters += 1
            self.advance()

    @rule(adapter=st.integers(0, 4))
    def unpin(self, adapter: int) -> None:
        self.gate.unpin(adapter)
        self.pinned.discard(adapter)
        self.advance()

    @rule()
    def everyone_is_served_in_the_end(self) -> None:
        """With requests only ending, everything that waits gets in: within as many ends as requests."""
        for _ in range(len(self.waiting) + len(self.running)):
            if not self.running:
                break
            self.gate.release(self.running.pop(0), self.now)
            self.advance()
        assert not self.waiting

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "gate"):
            return
        assert self.gate.waiting == len(self.waiting)
        assert self.gate.running == len(self.running) <= self.gate.max_running
        adapters = {ticket.adapter for ticket in self.running} - {None}
        assert self.gate.adapters_running == len(adapters) <= self.most_adapters
        assert self.gate.waiting_by_adapter == Counter(ticket.adapter for ticket in self.waiting)
        assert self.gate.running_by_adapter == Counter(ticket.adapter for ticket in self.running)
        assert self.gate.oldest_wait(self.now) == max((self.now - each.arrived for each in self.waiting), default=0)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if hasattr(self, "gate") and self.waiting:
            assert self.running


TestGate = GateMachine.TestCase
TestGate.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


class Engine:
    """Computes a token of every request in flight at each tick, and keeps the queues of busy adapters from running
    empty."""

    def __init__(self, gate: Gate, costs: dict[tuple[int | None, bool], list[int]], *, depth: int = 3) -> None:
        self.gate = gate
        self.depth = depth
        self.now = 0.0
        self.left: dict[Ticket, int] = {}
        self.tokens = Counter[tuple[int | None, bool]]()
        self._costs = {whose: cycle(pattern) for whose, pattern in costs.items()}
        self._waiting = Counter[tuple[int | None, bool]]()

    def tick(self) -> None:
        for whose, costs in self._costs.items():
            while self._waiting[whose] < self.depth:
                self.gate.offer(whose[0], next(costs), now=self.now, background=whose[1])
                self._waiting[whose] += 1
        self.admit()
        self.now += 1
        for ticket in list(self.left):
            self.left[ticket] -= 1
            if not self.left[ticket]:
                del self.left[ticket]
                self.gate.release(ticket, self.now)
                self.admit()

    def admit(self) -> None:
        for ticket in self.gate.admit(self.now):
            self.left[ticket] = ticket.cost
            self.tokens[ticket.adapter, ticket.background] += ticket.cost
            self._waiting[ticket.adapter, ticket.background] -= 1

    def until_admitted(self, ticket: Ticket, most: float) -> float:
        """Ticks until a ticket is in; fails when they are more than ``most``."""
        begun = self.now
        self.admit()
        while ticket.admitted is None:
            assert self.now - begun <= most, "starved"
            self.tick()
        return self.now - begun


LARGEST = 6
PATTERNS = st.lists(st.integers(1, LARGEST), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    busy=st.lists(PATTERNS, min_size=1, max_size=4),
    base=st.none() | PATTERNS,
    running=st.integers(1, 6),
    slots=st.integers(1, 3),
    quantum=st.integers(1, 12),
    turn=st.integers(0, 8),
    warm=st.integers(0, 40),
    cost=st.integers(1, LARGEST),
)
def test_a_request_gets_in_within_a_bounded_time_however_busy_the_others_are(
    busy: list[list[int]],
    base: list[int] | None,
    running: int,
    slots: int,
    quantum: int,
    turn: int,
    warm: int,
    cost: int,
) -> None:
    """Every other adapter may take its turn with a slot, let its last requests run out, and wait for a place itself."""
    costs: dict[tuple[int | None, bool], list[int]] = {
        (adapter, False): pattern for adapter, pattern in enumerate(busy)
    }
    if base is not None:
        costs[None, False] = base
    gate = Gate(slots=slots, max_running=running, max_queued=1000, quantum=quantum, turn_seconds=turn)
    engine = Engine(gate, costs)
    for _ in range(warm):
        engine.tick()
    rounds = -(-LARGEST // quantum)
    for_a_place = LARGEST + rounds * (slots + 1) * (quantum + LARGEST)
    for_a_slot = turn + LARGEST + for_a_place
    ticket = gate.offer(77, cost, now=engine.now)
    engine.until_admitted(ticket, (len(busy) + 1) * for_a_slot + for_a_place)


@settings(max_examples=60, deadline=None)
@given(
    busy=st.lists(PATTERNS, min_size=1, max_size=4),
    running=st.integers(1, 6),
    quantum=st.integers(1, 12),
    warm=st.integers(0, 40),
    cost=st.integers(1, LARGEST),
)
def test_with_a_slot_free_only_so_many_tokens_of_others_go_first(
    busy: list[list[int]], running: int, quantum: int, warm: int, cost: int
) -> None:
    """As many rounds as the request has quanta, in each of which the others spend a quantum and what they had saved."""
    gate = Gate(slots=9, max_running=running, max_queued=1000, quantum=quantum)
    engine = Engine(gate, {(adapter, False): pattern for adapter, pattern in enumerate(busy)})
    for _ in range(warm):
        engine.tick()
    before = engine.tokens.total()
    ticket = gate.offer(77, cost, now=engine.now)
    engine.until_admitted(ticket, 1000)
    others = engine.tokens.total() - before - cost
    rounds = -(-cost // quantum)
    # The place it takes is given in the same call as places to others, at most all of them.
    assert others <= (rounds + 1) * len(busy) * (quantum + LARGEST)


def test_an_adapter_keeps_its_slot_for_a_turn_and_then_gives_way() -> None:
    gate = Gate(slots=1, max_running=4, max_queued=100, turn_seconds=3)
    engine = Engine(gate, {(1, False): [2]})
    engine.tick()
    waiting = gate.offer(2, 1, now=engine.now)
    # Two seconds of the turn are left, and a request let in at their end takes two more.
    assert 2 <= engine.until_admitted(waiting, 4) <= 4
    assert gate.running_by_adapter == {2: 1}


def test_a_turn_is_also_over_after_its_tokens() -> None:
    gate = Gate(slots=1, max_running=100, max_queued=1000, quantum=10, turn_seconds=1e9)
    for adapter in (1, 2):
        for _ in range(100):
            gate.offer(adapter, 10, now=0)
    admitted = gate.admit(0)
    assert [ticket.adapter for ticket in admitted] == [1] * 16, "sixteen quanta"
    for ticket in admitted:
        gate.release(ticket, 1)
    assert [ticket.adapter for ticket in gate.admit(1)] == [2] * 16


def test_only_as_many_turns_end_as_adapters_wait() -> None:
    gate = Gate(slots=3, max_running=30, max_queued=100, turn_seconds=2)
    engine = Engine(gate, {(1, False): [40], (2, False): [5], (3, False): [5]})
    for _ in range(3):
        engine.tick()
    before = engine.tokens.copy()
    assert engine.until_admitted(gate.offer(4, 5, now=engine.now), 40) >= 30
    assert engine.tokens[1, False] == before[1, False], "the first to come gives way"
    assert engine.tokens[2, False] > before[2, False] + 20, "the others go on meanwhile"
    assert engine.tokens[3, False] > before[3, False] + 20


def test_a_pinned_adapter_waits_for_no_slot_and_leaves_the_others_one_less() -> None:
    gate = Gate(slots=2, max_running=10, max_queued=10)
    gate.pin(9, 0)
    first, second = gate.offer(1, now=0), gate.offer(2, now=0)
    assert gate.admit(0) == [first], "a slot is kept while nobody asks for it"
    pinned = gate.offer(9, now=0)
    assert gate.admit(0) == [pinned]
    gate.release(pinned, 1)
    assert gate.admit(1) == []
    gate.unpin(9)
    assert gate.admit(1) == [second]


def test_a_pinned_adapter_keeps_its_slot_while_others_take_turns() -> None:
    gate = Gate(slots=2, max_running=8, max_queued=100, turn_seconds=3)
    gate.pin(9, 0)
    engine = Engine(gate, {(adapter, False): [2] for adapter in (1, 2, 9)})
    gaps = 0
    for _ in range(100):
        engine.tick()
        gaps += 9 not in gate.running_by_adapter
        assert gate.running_by_adapter.keys() in ({9}, {1, 9}, {2, 9})
    assert gaps == 0
    assert min(engine.tokens.values()) > 50


def test_a_slot_that_is_pinned_while_others_hold_it_comes_free_though_nobody_waits_for_it() -> None:
    """Without that, the engine would keep one of two busy adapters waiting for as long as the other is busy."""
    gate = Gate(slots=2, max_running=8, max_queued=100, turn_seconds=3)
    engine = Engine(gate, {(adapter, False): [2] for adapter in (1, 2)})
    for _ in range(10):
        engine.tick()
    assert gate.running_by_adapter.keys() == {1, 2}
    gate.pin(9, engine.now)
    for _ in range(5):
        engine.tick()
    before = engine.tokens.copy()
    for _ in range(40):
        engine.tick()
        assert len(gate.running_by_adapter) == 1
    assert engine.tokens[1, False] > before[1, False] + 50
    assert engine.tokens[2, False] > before[2, False] + 50


def test_the_base_model_needs_no_slot() -> None:
    gate = Gate(slots=1, max_running=10, max_queued=10)
    tickets = [gate.offer(adapter, now=0) for adapter in (1, 2, None)]
    assert set(gate.admit(0)) == {tickets[0], tickets[2]}


def test_busy_adapters_share_the_places_by_tokens() -> None:
    gate = Gate(slots=4, max_running=8, max_queued=1000, quantum=20)
    engine = Engine(gate, {(1, False): [3], (2, False): [30], (None, False): [10]}, depth=20)
    for _ in range(2000):
        engine.tick()
    tokens = sorted(engine.tokens.values())
    assert tokens[-1] <= 1.1 * tokens[0]


def test_a_flood_fills_its_own_queue_and_not_everybodys() -> None:
    gate = Gate(slots=4, max_running=1, max_queued=8)
    gate.offer(1, now=0)
    gate.admit(0)
    for _ in range(2):
        gate.offer(1, now=0)
    with pytest.raises(FullError, match="2 requests are waiting for this adapter already"):
        gate.offer(1, now=0)
    for adapter in (2, 3, None):
        for _ in range(2):
            gate.offer(adapter, now=0)
    with pytest.raises(FullError, match="8 requests are waiting already"):
        gate.offer(4, now=0)


def test_the_wait_that_is_told_follows_from_the_tokens_that_wait_and_the_rate_of_the_engine() -> None:
    gate = Gate(slots=1, max_running=1, max_queued=1000)
    assert gate.retry_after() == 1, "nothing is known yet"
    now = 0.0
    for _ in range(50):
        ticket = gate.offer(None, 100, now=now)
        gate.admit(now)
        now += 2
        gate.release(ticket, now)
        now += 100  # idle time says nothing about the rate
    for cost in (50, 150, 300):
        gate.offer(None, cost, now=now)
    assert gate.retry_after() == pytest.approx(10, rel=0.05)


def test_the_background_takes_what_is_left_and_its_share_when_nothing_is() -> None:
    gate = Gate(slots=4, max_running=4, max_queued=1000, quantum=20)
    engine = Engine(gate, {(1, False): [10], (2, True): [10]}, depth=20)
    for _ in range(2000):
        engine.tick()
    share = engine.tokens[2, True] / engine.tokens.total()
    assert BACKGROUND_SHARE * 0.7 <= share <= BACKGROUND_SHARE * 1.3
    quiet = Gate(slots=4, max_running=4, max_queued=1000)
    tickets = [quiet.offer(2, now=0, background=True) for _ in range(3)]
    assert quiet.admit(0) == tickets, "all of it where nobody else is there"


def test_people_take_a_slot_from_the_background_at_once_and_it_comes_back_in_the_end() -> None:
    gate = Gate(slots=1, max_running=4, max_queued=1000, turn_seconds=5)
    engine = Engine(gate, {(1, True): [3]})
    engine.tick()
    assert engine.until_admitted(gate.offer(2, 3, now=engine.now), 3) <= 3
    busy = Gate(slots=1, max_running=4, max_queued=1000, turn_seconds=5)
    engine = Engine(busy, {(1, False): [3]})
    engine.tick()
    waited = engine.until_admitted(busy.offer(2, 3, now=0.0, background=True), 40)
    assert 4 * 5 <= waited <= 4 * 5 + 2 * 3, "as if it had come four turns later"


def test_adapters_in_the_background_share_what_is_left_while_somebody_asks() -> None:
    gate = Gate(slots=4, max_running=32, max_queued=1000, quantum=512, turn_seconds=2.0)
    entered: Counter[int] = Counter()
    running: list[Ticket] = []
    person: Ticket | None = None
    for step in range(800):
        now = step / 20
        if person is None:
            person = gate.offer(9, 300, now=now)
        for adapter in (1, 2):
            while gate.queued(adapter) < 16:
                gate.offer(adapter, 400, now=now, background=True)
        for ticket in gate.admit(now):
            if ticket.background:
                running.append(ticket)
                entered[ticket.adapter or 0] += 1
        if person.admitted is not None and now - person.admitted >= 1:
            gate.release(person, now)
            person = None
        if running:
            gate.release(running.pop(0), now)
    assert min(entered[1], entered[2]) > 300
    assert abs(entered[1] - entered[2]) < 10


def test_an_adapter_in_the_background_that_lets_nobody_in_gives_up_its_slot() -> None:
    gate = Gate(slots=2, max_running=16, max_queued=1000, quantum=512, turn_seconds=2.0)
    busy = gate.offer(1, 4000, now=0.0)
    assert gate.admit(0.0) == [busy]
    for _ in range(40):
        gate.offer(None, 400, now=0.0, background=True)
    gate.admit(0.0)
    gate.offer(2, 400, now=0.1, background=True)
    assert gate.admit(0.1) == []
    person = gate.offer(3, 100, now=0.2)
    assert person in gate.admit(0.2)


def test_interactive_requests_of_an_adapter_go_before_its_background() -> None:
    gate = Gate(slots=1, max_running=1, max_queued=10)
    first = gate.offer(1, 10, now=0)
    assert gate.admit(0) == [first]
    background = gate.offer(1, 10, now=0, background=True)
    later = gate.offer(1, 10, now=1)
    gate.release(first, 2)
    assert gate.admit(2) == [later]
    gate.release(later, 3)
    assert gate.admit(3) == [background]


def test_admitting_is_fast_with_a_long_queue() -> None:
    """The bound is ten times what it takes on a slow machine: it is there to notice a scan of the whole queue."""

    def seconds() -> float:
        gate = Gate(slots=32, max_running=256, max_queued=4096)
        for number in range(4000):
            gate.offer(number % 1000, 100, now=0)
        running = gate.admit(0)
        started = time.perf_counter()
        for step in range(1, 1001):
            now = step * 0.05
            gate.release(running.pop(0), now)
            running += gate.admit(now)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(3)) < 1000 * 500e-6
