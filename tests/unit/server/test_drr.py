"""Deficit round robin: the same number of tokens for each queue, whatever its requests and however many of them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_server.admission.drr import RoundRobin
from graft_server.admission.queues import Queue, Ticket


def queue_of(adapter: int, costs: list[int]) -> Queue:
    queue = Queue(adapter, background=False)
    for number, cost in enumerate(costs):
        queue.append(Ticket(number, adapter, cost, False, 0.0))
    return queue


def serve(ring: RoundRobin, queue: Queue) -> int:
    ticket = queue.head
    queue.remove(ticket)
    ring.charge(queue, ticket.cost)
    return ticket.cost


@given(
    quantum=st.integers(1, 50),
    patterns=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=2, max_size=5),
    blocked=st.sets(st.integers(0, 4)),
    turns=st.integers(1, 150),
)
def test_queues_that_never_run_empty_get_the_same_tokens(
    quantum: int, patterns: list[list[int]], blocked: set[int], turns: int
) -> None:
    """The bound of the paper's lemma 2, for any interval that begins with empty deficits."""
    ring = RoundRobin(quantum)
    for adapter, pattern in enumerate(patterns):
        ring.add(queue_of(adapter, pattern * 150))
    served = Counter({adapter: 0 for adapter in range(len(patterns)) if adapter not in blocked})
    for _ in range(turns):
        queue = ring.pick(lambda queue: queue.adapter not in blocked)
        if queue is None:
            assert not served
            return
        served[queue.adapter] += serve(ring, queue)
    largest = max(max(pattern) for pattern in patterns)
    assert max(served.values()) - min(served.values()) <= quantum + 2 * largest
    assert not blocked & served.keys()


@given(quantum=st.integers(1, 20), costs=st.lists(st.integers(1, 100), min_size=1, max_size=30))
def test_each_queue_is_served_in_order_and_to_its_end(quantum: int, costs: list[int]) -> None:
    ring = RoundRobin(quantum)
    queues = [queue_of(0, costs), queue_of(1, costs[::-1])]
    for queue in queues:
        ring.add(queue)
    numbers: dict[int, list[int]] = {0: [], 1: []}
    while (queue := ring.pick(lambda _: True)) is not None:
        numbers[queue.adapter].append(queue.head.number)
        serve(ring, queue)
    assert numbers == {0: list(range(len(costs))), 1: list(range(len(costs)))}
    assert len(ring) == 0


def test_large_requests_do_not_buy_more() -> None:
    ring = RoundRobin(100)
    ring.add(queue_of(0, [1000] * 10))
    ring.add(queue_of(1, [10] * 1000))
    served = Counter[int]()
    while served.total() < 8000:
        queue = ring.pick(lambda _: True)
        served[queue.adapter] += serve(ring, queue)
    assert served[0] == pytest.approx(served[1], abs=1100)


def test_what_a_queue_has_saved_is_lost_when_it_leaves() -> None:
    ring = RoundRobin(10)
    rich, other = queue_of(0, [25, 25]), queue_of(1, [25, 25])
    ring.add(rich)
    ring.add(other)
    assert ring.pick(lambda _: True) is rich
    ring.discard(rich)
    ring.add(rich)
    assert ring.pick(lambda _: True) is other
