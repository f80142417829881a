"""Figures by adapter: few labels whatever is asked, totals that are right and never fall, labels for the busy ones."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric

from graft_server.engine.base import EngineStats, EngineUnavailableError
from graft_server.engine.stats_cache import StatsCache
from graft_server.metrics.buckets import Buckets
from graft_server.metrics.by_adapter import RequestFigures, Served
from graft_server.metrics.of_engine import EngineFigures
from graft_server.metrics.top_names import TopNames
from support.scripted_engine import ScriptedEngine

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def series(families: list[Metric]) -> Series:
    """Values by the sample's name and labels."""
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def adapters(found: Series) -> set[str]:
    return {value for _, labels in found for name, value in labels if name == "adapter"}


def summed(found: Series) -> Series:
    """The families by adapter, summed over the adapters, under the names of those without."""
    sums: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()
    for (name, labels), value in found.items():
        if name.startswith("graft_adapter_") and "labels_moved" not in name:
            rest = frozenset(label for label in labels if label[0] != "adapter")
            sums[name.replace("graft_adapter_", "graft_"), rest] += value
    return dict(sums)


# Few names that come back, with runs of one of them, so that labels change hands.
names = st.one_of(st.none(), st.sampled_from(["other", *"abcdefgh"]))
runs = st.lists(st.tuples(names, st.sampled_from(["ok", "aborted", "overloaded"]), st.integers(1, 60)), max_size=12)


@given(runs, st.integers(0, 3))
def test_labels_are_bounded_and_totals_are_right_and_never_fall(
    asked: list[tuple[str | None, str, int]], most: int
) -> None:
    figures = RequestFigures(most)
    wanted: Counter[str] = Counter()
    before: Series = {}
    for name, outcome, count in asked:
        for n in range(count):
            figures.observe(Served(name, outcome, 3, n, queued=0.25, total=2.0 if outcome == "ok" else None))
            wanted["prompt"] += 3
            wanted["completion"] += n
        wanted[outcome] += count
        found = series(list(figures.collect()))
        assert len(adapters(found)) <= most + 2
        totals = {key: value for key, value in found.items() if not any(name == "adapter" for name, _ in key[1])}
        for key, value in summed(found).items():
            assert totals[key] == pytest.approx(value)
        for outcome in ("ok", "aborted", "overloaded"):
            assert totals.get(("graft_predictions_total", frozenset({("outcome", outcome)})), 0) == wanted[outcome]
        for kind in ("prompt", "completion"):
            assert totals["graft_tokens_total", frozenset({("kind", kind)})] == wanted[kind]
        assert totals["graft_request_seconds_count", frozenset()] == wanted["ok"]
        assert totals["graft_queue_seconds_sum", frozenset()] == pytest.approx(0.25 * wanted["prompt"] / 3)
        # A series may end, and begin again at nought; one that goes on never falls unless a label moved meanwhile.
        moved = ("graft_adapter_labels_moved_total", frozenset())
        steady = found[moved] == before.get(moved, 0)
        for key, value in before.items():
            lasting = ("adapter", "other") in key[1] or ("adapter", "base") in key[1] or key in totals
            if lasting or (steady and key in found):
                assert found[key] >= value
        before = found


def test_names_that_are_asked_once_take_no_label_from_busy_ones() -> None:
    top = TopNames(10)
    busy = [f"busy-{n}" for n in range(10)]
    for scan in range(20_000):
        top.count(f"scan-{scan}")
        top.count(busy[scan % 10])
    assert all(name in top for name in busy)


def test_names_of_equal_use_do_not_take_turns() -> None:
    draw = random.Random(1)
    top = TopNames(50)
    moves = sum(top.count(f"name-{draw.randrange(100)}") is not None for _ in range(100_000))
    assert moves < 100


def test_a_name_that_becomes_busy_gets_the_label_of_one_that_no_longer_is() -> None:
    top = TopNames(2)
    for _ in range(100_000):
        top.count("old")
        top.count("older")
    lost = [left for _ in range(1_000) if (left := top.count("new")) is not None]
    assert lost in (["old"], ["older"])
    assert "new" in top


def test_the_figures_of_a_name_that_loses_its_label_move_into_other() -> None:
    figures = RequestFigures(1)
    for name in ["old"] * 3 + ["new"] * 40:
        figures.observe(Served(name, "ok", completion_tokens=10, first_token=0.2))
    found = series(list(figures.collect()))
    assert adapters(found) == {"base", "other", "new"}
    assert found["graft_adapter_labels_moved_total", frozenset()] == 1
    other = found["graft_adapter_tokens_total", frozenset({("adapter", "other"), ("kind", "completion")})]
    new = found["graft_adapter_tokens_total", frozenset({("adapter", "new"), ("kind", "completion")})]
    assert other >= 30
    assert other + new == 430
    assert found["graft_adapter_time_to_first_token_seconds_count", frozenset({("adapter", "new")})] == new / 10


def test_an_adapter_called_other_has_no_label_of_its_own() -> None:
    figures = RequestFigures(5)
    figures.observe(Served("other", "ok", prompt_tokens=1))
    figures.observe(Served("films", "ok", prompt_tokens=1))
    found = series(list(figures.collect()))
    assert adapters(found) == {"base", "other", "films"}
    assert found["graft_adapter_tokens_total", frozenset({("adapter", "other"), ("kind", "prompt")})] == 1


def test_buckets_are_those_of_prometheus() -> None:
    buckets = Buckets((0.5, 1))
    for value in (0.1, 0.5, 0.7, 1.0, 3.0):
        buckets.observe(value)
    assert list(buckets.cumulative()) == [("0.5", 2.0), ("1.0", 4.0), ("+Inf", 5.0)]
    assert buckets.sum == pytest.approx(5.3)


def test_observing_a_request_is_cheap() -> None:
    figures = RequestFigures(100)
    requests = [Served(f"name-{n % 500}", "ok", 10, 20, 0.1, 0.2, 0.03, 0.9) for n in range(5_000)]
    passes = []
    for _ in range(5):
        begun = time.perf_counter()
        for request in requests:
            figures.observe(request)
        passes.append((time.perf_counter() - begun) / len(requests))
    assert min(passes) < 20e-6


# The engine


class SlowEngine(ScriptedEngine):
    """Tells its figures when a test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.told = asyncio.Event()
        self.fails = False

    async def stats(self) -> EngineStats:
        self.asked += 1
        await self.told.wait()
        if self.fails:
            raise EngineUnavailableError("the engine is not running")
        return EngineStats(running=3, preemptions=7, load_counts=(1, *[0] * 11, 2), load_seconds=80.5)


async def test_an_engine_that_hangs_is_asked_once_and_waited_for_once() -> None:
    engine = SlowEngine()
    cache = StatsCache(engine)
    begun = time.monotonic()
    assert await asyncio.gather(*(cache.get() for _ in range(20))) == [EngineStats()] * 20
    first = time.monotonic() - begun
    again = asyncio.create_task(cache.get())
    for _ in range(10):  # turns of the event loop, in which no time has to pass
        await asyncio.sleep(0)
    assert again.done()
    assert engine.asked == 1
    assert cache.age >= first > 0.5
    engine.told.set()
    assert (await cache.get()).running == 3
    assert time.monotonic() - cache.age >= begun + first


async def test_figures_that_are_young_enough_are_not_asked_for_again() -> None:
    engine = SlowEngine()
    engine.told.set()
    cache = StatsCache(engine)
    await cache.get()
    await cache.get(max_age=60)
    assert engine.asked == 1
    await cache.get()
    assert engine.asked == 2


async def test_an_engine_that_fails_leaves_the_last_figures() -> None:
    engine = SlowEngine()
    engine.told.set()
    cache = StatsCache(engine)
    await cache.get()
    engine.fails = True
    assert (await cache.get()).running == 3


async def test_the_engines_figures_are_counters_gauges_and_a_histogram() -> None:
    engine = SlowEngine()
    engine.told.set()
    cache = StatsCache(engine)
    await cache.get()
    found = series(list(EngineFigures(cache).collect()))
    assert found["graft_engine_running", frozenset()] == 3
    assert found["graft_preemptions_total", frozenset()] == 7
    assert found["graft_load_seconds_bucket", frozenset({("le", "0.005")})] == 1
    assert found["graft_load_seconds_bucket", frozenset({("le", "+Inf")})] == 3
    assert found["graft_load_seconds_sum", frozenset()] == 80.5
