"""The gate loses nothing, admits nothing twice, keeps to its slots and lets nobody starve."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from graft_server.admission.gate import FullError, Gate
from graft_server.admission.turnstile import Turnstile


class GateMachine(RuleBasedStateMachine):
    """Arrivals, ends and hang-ups in any order."""

    tickets = Bundle("tickets")

    @initialize(
        slots=st.integers(1, 3), running=st.integers(1, 5), queued=st.integers(1, 8), overtakes=st.integers(0, 3)
    )
    def begin(self, slots: int, running: int, queued: int, overtakes: int) -> None:
        self.gate = Gate(slots=slots, max_running=running, max_queued=queued, max_overtakes=overtakes)
        self.now = 0.0
        self.waiting: list = []
        self.running: list = []
        self.admitted: set[int] = set()

    def advance(self) -> None:
        self.now += 1
        for ticket in self.gate.admit(self.now):
            assert ticket.number not in self.admitted, "admitted twice"
            self.admitted.add(ticket.number)
            self.waiting.remove(ticket)
            self.running.append(ticket)

    @rule(target=tickets, adapter=st.one_of(st.none(), st.integers(0, 4)))
    def arrive(self, adapter: int | None):
        if len(self.waiting) == self.gate.max_queued:
            with pytest.raises(FullError) as refused:
                self.gate.offer(adapter)
            assert 1 <= refused.value.retry_after <= 60
            return None
        ticket = self.gate.offer(adapter)
        self.waiting.append(ticket)
        self.advance()
        return ticket

    @rule(ticket=consumes(tickets))
    def end(self, ticket) -> None:
        if ticket is None:
            return
        self.gate.release(ticket, self.now)
        # One that has ended already: releasing it again must change nothing, which the invariants check.
        for tickets in (self.running, self.waiting):
            if ticket in tickets:
                tickets.remove(ticket)
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
        assert len({ticket.adapter for ticket in self.running} - {None}) <= self.gate.slots
        assert self.gate.waiting <= self.gate.max_queued

    @invariant()
    def nobody_waits_without_need(self) -> None:
        if getattr(self, "waiting", None) and not self.running:
            raise AssertionError("requests wait though nothing runs")


GateMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestGate = GateMachine.TestCase


def test_an_adapter_without_a_slot_is_overtaken_only_so_often() -> None:
    gate = Gate(slots=1, max_running=2, max_queued=100, max_overtakes=3)
    first = gate.offer(1)
    assert gate.admit(0) == [first]
    starving = gate.offer(2)
    running = first
    for _ in range(3):
        later = gate.offer(1)
        assert gate.admit(0) == [later], "an adapter that has a slot goes on"
        gate.release(running, 0)
        running = later
    blocked = gate.offer(1)
    assert gate.admit(0) == [], "now the oldest request is a barrier"
    gate.release(running, 0)
    assert gate.admit(0) == [starving]
    gate.release(starving, 0)
    assert gate.admit(0) == [blocked]


def test_the_base_model_needs_no_slot() -> None:
    gate = Gate(slots=1, max_running=10, max_queued=10)
    tickets = [gate.offer(adapter) for adapter in (1, 2, None)]
    assert gate.admit(0) == [tickets[0], tickets[2]]


def test_the_wait_that_is_told_grows_with_the_queue_and_the_time_a_request_takes() -> None:
    gate = Gate(slots=1, max_running=1, max_queued=1000)
    for _ in range(50):
        ticket = gate.offer(None)
        gate.admit(0)
        gate.release(ticket, 10)
    for _ in range(4):
        gate.offer(None)
    assert gate.retry_after() == pytest.approx(40, rel=0.05)


async def test_a_caller_that_gives_up_while_waiting_frees_its_place() -> None:
    turnstile = Turnstile(Gate(slots=1, max_running=1, max_queued=1))
    inside, leave = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with turnstile.enter(1):
            inside.set()
            await leave.wait()

    async def visit() -> None:
        async with turnstile.enter(2):
            pass

    holder = asyncio.create_task(hold())
    await inside.wait()
    waiting = asyncio.create_task(visit())
    while not turnstile.gate.waiting:
        await asyncio.sleep(0)
    with pytest.raises(FullError):
        await visit()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert turnstile.gate.waiting == 0
    next_one = asyncio.create_task(visit())
    leave.set()
    await asyncio.gather(holder, next_one)
    assert turnstile.gate.running == 0
