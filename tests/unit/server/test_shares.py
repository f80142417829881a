"""What the engine's pace is taken for, and how much of it one adapter may take."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_server.admission.pace import Pace
from graft_server.admission.shares import Shares


def paced(fixed: float, row: float, sizes: list[int], *, noise: float = 0.1) -> Pace:
    pace, draw = Pace(), random.Random(0)
    for size in sizes:
        for _ in range(50):
            pace.decoded(size, (fixed + row * size) * draw.uniform(1 - noise, 1 + noise))
    return pace


def test_the_knee_follows_what_was_seen() -> None:
    sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert Pace().knee == 16
    assert paced(0.04, 0.005, sizes).knee == pytest.approx(8, rel=0.2)
    assert paced(0.01, 0.0001, sizes).knee > 50
    assert paced(0.01, 0.0, sizes, noise=0.0).knee > 50, "rows cost nothing"


@given(st.integers(8, 60), st.integers(0, 2**32))
def test_sizes_that_lie_close_together_do_not_move_it_far(size: int, seed: int) -> None:
    pace, draw = Pace(), random.Random(seed)
    for _ in range(100):
        rows = size * draw.uniform(0.8, 1.25)
        pace.decoded(rows, (0.04 + 0.0025 * rows) * draw.uniform(0.85, 1.15))
    assert 8 <= pace.knee <= 32


def test_the_rate_counts_busy_time_only() -> None:
    pace = Pace()
    pace.pass_time(100, 0)
    assert pace.rate is None
    for second in range(10):
        pace.pass_time(101 + second, 1)
        pace.served(50)
    assert pace.rate == pytest.approx(50, rel=0.05)


def shares_of(*outstanding: int, max_running: int = 256) -> Shares:
    shares = Shares(max_running, slowdown=1.5, least=4, half_life=2.0)
    for adapter, requests in enumerate(outstanding):
        for _ in range(requests):
            shares.arrived(adapter, 0.0)
    return shares


def test_who_asks_for_more_slows_those_down_who_ask_for_less_by_no_more_than_the_bound() -> None:
    shares = shares_of(200, 1, 1, 1)
    running = {0: 8, 1: 1, 2: 1, 3: 1}
    limits = shares.limits(16.0, running, [], 0.0)
    rows = limits.of(0)
    assert (16 + 3 + rows) / (16 + 3) == pytest.approx(1.5)
    assert limits.of(1) >= 64, "nobody asks for less"


def test_adapters_that_ask_for_about_the_same_do_not_limit_each_other() -> None:
    limits = shares_of(70, 100).limits(16.0, {0: 50, 1: 50}, [], 0.0)
    assert limits.of(0) == limits.of(1) >= 64
    limits = shares_of(70, 40).limits(16.0, {0: 40, 1: 40}, [], 0.0)
    assert limits.of(0) == 80


def test_the_limit_grows_while_an_adapter_is_alone_and_a_request_brings_it_down() -> None:
    shares = shares_of(200, 1)
    at_first = shares.limits(16.0, {0: 8, 1: 1}, [], 0.0).of(0)
    shares.left(1, 0.0)
    assert shares.limits(16.0, {0: 8}, [], 2.0).of(0) == pytest.approx(2 * (at_first - 0.5))
    assert shares.limits(16.0, {0: 8}, [], 20.0).of(0) == 96
    shares.arrived(1, 20.0)
    assert shares.limits(16.0, {0: 90}, [1], 20.0).of(0) == pytest.approx(at_first - 0.5)


def test_half_of_few_places_stays_free_for_others() -> None:
    limits = shares_of(200, 1, max_running=6).limits(16.0, {0: 1}, [1], 0.0)
    assert limits.of(0) == 3


def test_the_background_is_limited_as_a_whole_by_everybody() -> None:
    shares = shares_of(200)
    limits = shares.limits(16.0, {0: 60}, [], 0.0)
    assert limits.background == pytest.approx(0.5 * (16 + 60))
    limits.entered(0, 61)
    assert limits.background == pytest.approx(0.5 * (16 + 61))


def test_adapters_that_have_gone_are_forgotten_and_those_in_flight_are_not() -> None:
    shares = shares_of(3, *[1] * 100)
    for adapter in range(1, 101):
        shares.left(adapter, 1.0)
    shares.arrived(200, 1000.0)
    assert set(shares._seen) == {0, 200}
    assert shares.limits(16.0, {0: 3, 200: 1}, [], 1000.0).of(0) == 8.5
