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


class Servers(RuleBasedStateMachine):
    """Servers that come and go enforce one limit together, with no word to each other but how many they are."""

    LIMIT = 60

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.buckets = [Bucket(self.LIMIT, 60.0)]
        self.open: list[tuple[Bucket, Reserved]] = []
        self.let_through = 0.0
        #: What the limit allows: its bucket, what refills it, and the buckets of new servers.
        self.allowed = float(self.LIMIT)

    @rule(seconds=st.floats(0, 40))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        self.allowed += seconds

    @rule(server=st.integers(0, 5), units=st.integers(1, 15), used=st.integers(0, 15) | st.none())
    def ask(self, server: int, units: int, used: int | None) -> None:
        """Some requests take what they reserve, others settle later for less."""
        bucket = self.buckets[server % len(self.buckets)]
        if units <= self.LIMIT / len(self.buckets) and bucket.wait(units, self.now) == 0:
            step = bucket.reserve(units, self.now)
            self.let_through += units
            if used is None:
                self.open.append((bucket, step))
            elif used < units:
                bucket.settle(step, used)
                self.let_through -= units - used

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        bucket, step = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        used = data.draw(st.integers(0, int(step.units)))
        if bucket in self.buckets:
            before = bucket.remaining(self.now)
            self.let_through -= step.units - used
            bucket.settle(step, used)
            assert bucket.remaining(self.now) >= before

    @precondition(lambda self: len(self.buckets) < 4)
    @rule()
    def one_comes(self) -> None:
        share = 1 / (len(self.buckets) + 1)
        self.share_out(share)
        self.buckets.append(Bucket(self.LIMIT, 60.0, share))
        self.allowed += self.LIMIT * share

    @precondition(lambda self: len(self.buckets) > 1)
    @rule(which=st.integers(0, 3))
    def one_goes(self, which: int) -> None:
        del self.buckets[which % len(self.buckets)]
        self.share_out(1 / len(self.buckets))

    def share_out(self, share: float) -> None:
        for bucket in self.buckets:
            before = bucket.remaining(self.now)
            bucket.share_out(share, self.now)
            # Nobody is given anything by a change, beyond the rounding to whole units.
            assert bucket.remaining(self.now) <= before + 1

    @invariant()
    def all_together_let_through_what_the_limit_says(self) -> None:
        assert self.let_through <= self.allowed + EPSILON * self.LIMIT


TestServers = Servers.TestCase


@given(servers=st.integers(1, 8), units=st.integers(1, 60))
def test_any_request_of_the_limit_fits_in_however_many_servers_there_are(servers: int, units: int) -> None:
    bucket, now, times = Bucket(60, 60.0, 1 / servers), 1000.0, []
    while now < 1000.0 + 60 * 60 * 24:
        now += bucket.wait(units, now) + EPSILON
        times.append(now)
        bucket.settle(bucket.reserve(units, now), units)
        if len(times) == 20:
            break
    assert times[0] == pytest.approx(1000.0)
    # In the long run at the rate of the share, with at most a bucket, or one request, to begin with.
    burst = max(60 / servers, units)
    assert 20 * units <= burst + (times[-1] - 1000.0) / servers + units * 1e-3 + 1e-3
    assert bucket.wait(61, now + 10**6) > 0


def test_a_full_bucket_stays_full_of_what_it_is_to_hold() -> None:
    bucket = Bucket(60, 60.0)
    bucket.share_out(1 / 3, 0.0)
    assert (bucket.remaining(0.0), bucket.capacity) == (20, 20)
    # Two servers are gone, and nobody knows what they had left: it comes back by itself, within the period.
    bucket.share_out(1.0, 0.0)
    assert bucket.remaining(0.0) == 20
    assert bucket.remaining(10.0) == 30
    assert bucket.remaining(40.0) == 60


def test_what_is_reserved_across_a_change_is_given_back_in_full_but_not_twice() -> None:
    bucket = Bucket(60, 60.0)
    step = bucket.reserve(40, 0.0)
    bucket.share_out(0.5, 0.0)
    assert bucket.remaining(0.0) == 10
    bucket.settle(step, 0)
    assert bucket.remaining(0.0) == 30
    assert bucket.remaining(1000.0) == 30
