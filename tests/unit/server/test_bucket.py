"""The bucket of a limit: whatever comes, and however it settles, it lets through what the limit says and no more."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from graft_server.quotas.bucket import Bucket, Reserved

EPSILON = 1e-6


def theoretical_arrival_time(bucket: Bucket, history: Sequence[tuple[float, float]]) -> float:
    """The algorithm as the standard has it, over requests whose cost was known when they came."""
    tat = float("-inf")
    for time, units in history:
        tat = max(tat, time) + units * bucket.period / bucket.limit
    return tat


class Buckets(RuleBasedStateMachine):
    """Requests come, and settle in any order for any part of what they reserved."""

    @initialize(limit=st.integers(1, 50), period=st.sampled_from([1.0, 60.0]))
    def begin(self, limit: int, period: float) -> None:
        self.bucket = Bucket(limit, period)
        self.now = 1000.0
        self.came: list[tuple[float, Reserved]] = []
        self.open: list[Reserved] = []

    @rule(share=st.floats(0, 2))
    def time_goes_by(self, share: float) -> None:
        self.now += share * self.bucket.period

    @rule(units=st.integers(0, 60))
    def ask(self, units: int) -> None:
        wait = self.bucket.wait(units, self.now)
        left = self.bucket.remaining(self.now)
        if units > self.bucket.limit:
            assert wait > 0
        elif wait > EPSILON:
            assert units > left
            # It says when to come back, and not a moment later than needed.
            assert self.bucket.wait(units, self.now + wait + EPSILON) == 0
            if wait > 1e-3:
                assert self.bucket.wait(units, self.now + wait - 1e-3) > 0
        else:
            assert units <= left
            step = self.bucket.reserve(units, self.now)
            self.came.append((self.now, step))
            self.open.append(step)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        step = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        before = self.bucket.remaining(self.now)
        self.bucket.settle(step, data.draw(st.integers(0, int(step.units))))
        assert self.bucket.remaining(self.now) >= before

    @invariant()
    def no_window_has_more_than_a_bucket_and_what_refilled_it(self) -> None:
        for first, (start, _) in enumerate(self.came):
            total = 0.0
            for time, step in self.came[first:]:
                total += step.units
                refilled = (time - start) * self.bucket.limit / self.bucket.period
                assert total <= self.bucket.limit + refilled + EPSILON * self.bucket.limit

    @invariant()
    def it_is_as_if_each_had_asked_for_what_it_used(self) -> None:
        expected = theoretical_arrival_time(self.bucket, [(time, step.units) for time, step in self.came])
        assert self.bucket.reset(self.now) == pytest.approx(max(0.0, expected - self.now), abs=EPSILON)

    @invariant()
    def what_is_over_takes_no_memory(self) -> None:
        assert len(self.bucket._steps) <= 2 * len(self.open)


TestBuckets = Buckets.TestCase


@given(limit=st.integers(1, 10**9), period=st.sampled_from([60.0, 86400.0]), now=st.floats(0, 1e7))
def test_all_of_a_bucket_fits_in_and_comes_back(limit: int, period: float, now: float) -> None:
    bucket = Bucket(limit, period)
    assert bucket.remaining(now) == limit
    assert bucket.wait(limit, now) < EPSILON
    bucket.settle(bucket.reserve(limit, now), limit)
    assert bucket.remaining(now) == 0
    assert bucket.remaining(now + period + EPSILON) == limit
    assert bucket.idle(now + period + EPSILON)


def test_more_than_was_reserved_is_a_debt() -> None:
    bucket = Bucket(10, 10.0)
    step = bucket.reserve(10, 0.0)
    bucket.settle(step, 25)
    assert bucket.remaining(10.0) == 0
    assert bucket.wait(1, 10.0) == pytest.approx(6.0)


def test_what_has_come_back_by_itself_is_not_given_back_again() -> None:
    bucket = Bucket(10, 10.0)
    old = bucket.reserve(10, 0.0)
    bucket.reserve(10, 10.0)
    bucket.settle(old, 0)
    assert bucket.wait(1, 10.0) == pytest.approx(1.0)
