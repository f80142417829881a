"""Requests in progress by adapter, and their tokens a second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_server.serving.traffic import Load, Traffic


def test_a_request_waits_runs_and_is_gone() -> None:
    traffic = Traffic()
    first, second = traffic.arrive("de@1", 10.0), traffic.arrive("de@1", 12.0)
    assert traffic.queue_age(15.0) == 5.0
    traffic.enter(first)
    assert traffic.loads(15.0) == {"de@1": Load(running=1, waiting=1, tokens_per_second=0.0)}
    assert traffic.queue_age(15.0) == 3.0
    traffic.leave(second)
    traffic.leave(first)
    assert traffic.loads(15.0) == {}
    assert traffic.queue_age(15.0) == 0.0


def test_tokens_count_for_ten_seconds() -> None:
    traffic = Traffic()
    flight = traffic.arrive("de@1", 0.0)
    traffic.enter(flight)
    for step in range(1, 101):
        traffic.generated(flight, step, step / 10)
    traffic.generated(flight, 0, 10.0)  # a delta without a count
    traffic.leave(flight)
    assert traffic.loads(10.0)["de@1"].tokens_per_second == pytest.approx(10.0, rel=0.05)
    assert traffic.loads(15.0)["de@1"].tokens_per_second == pytest.approx(5.0, rel=0.05)
    assert traffic.loads(20.1) == {}


@given(st.lists(st.tuples(st.sampled_from(["arrive", "enter", "tokens", "leave"]), st.integers(0, 9)), max_size=80))
def test_counts_are_those_of_the_requests_there_are(steps: list[tuple[str, int]]) -> None:
    traffic = Traffic()
    flights: list = []
    for now, (step, pick) in enumerate(steps):
        if step == "arrive":
            flights.append(traffic.arrive(f"a{pick % 3}@1", float(now)))
        elif flights:
            flight = flights[pick % len(flights)]
            if step == "enter" and not flight.running:
                traffic.enter(flight)
            elif step == "tokens" and flight.running:
                traffic.generated(flight, flight.tokens + pick, float(now))
            elif step == "leave":
                traffic.leave(flight)
                flights.remove(flight)
        loads = traffic.loads(float(now))
        for ref in ("a0@1", "a1@1", "a2@1"):
            load = loads.get(ref, Load(0, 0, 0.0))
            assert load.running == sum(f.running for f in flights if f.ref == ref)
            assert load.waiting == sum(not f.running for f in flights if f.ref == ref)
        oldest = min((f.arrived for f in flights if not f.running), default=float(now))
        assert traffic.queue_age(float(now)) == now - oldest
