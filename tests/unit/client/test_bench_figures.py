"""From times to figures: definitions on made-up records, percentiles against the standard library."""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_client.bench.plot import draw, in_flight, token_rates
from graft_client.bench.records import Failure, Measurements, Record
from graft_client.bench.result import summarise
from graft_client.bench.settings import BenchSettings
from graft_client.bench.statistics import Distribution, percentile
from graft_client.bench.workload import Length

VALUES = st.lists(st.floats(0, 1e6), min_size=2, max_size=200)


def record(model: str = "a", *, due: float = 0.0, chunks: Sequence[float] = (), ended: float, **fields: Any) -> Record:
    return Record(model, due, ended, array("d", chunks), **{"prompt_tokens": 10, **fields})


def failed(model: str, kind: str, ended: float = 1.0) -> Record:
    return Record(model, 0.0, ended, failure=Failure(kind, f"because of {kind}"))


def settings(**fields: Any) -> BenchSettings:
    tokens = Length(1, 1)
    return BenchSettings(
        url="http://x",
        **{"models": ["a", "b"], "concurrency": 1, "prompt_tokens": tokens, "output_tokens": tokens, **fields},
    )


@given(values=VALUES, percent=st.integers(1, 99))
def test_percentiles_are_the_standard_librarys(values: list[float], percent: int) -> None:
    expected = statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
    assert percentile(sorted(values), percent) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(values=VALUES)
def test_percentiles_lie_between_the_values_and_rise(values: list[float]) -> None:
    ordered = sorted(values)
    assert (percentile(ordered, 0), percentile(ordered, 100)) == (ordered[0], ordered[-1])
    found = Distribution.of(values)
    assert found is not None
    rising = [found.p50, found.p90, found.p95, found.p99]
    assert rising == sorted(rising)
    assert found.mean == pytest.approx(1000 * statistics.fmean(values))


def test_one_value_is_each_of_its_percentiles_and_none_has_none() -> None:
    assert Distribution.of([0.5]) == Distribution(mean=500, p50=500, p90=500, p95=500, p99=500)
    assert Distribution.of([]) is None
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_times_of_a_request_by_their_definitions() -> None:
    asked = record(due=1.0, chunks=(1.5, 1.75, 2.25), ended=2.5, output_tokens=5)
    assert (asked.ttft, asked.latency) == (0.5, 1.5)
    assert asked.tpot == 0.25  # (1.5 - 0.5) / (5 - 1): tokens, not pieces
    assert asked.gaps == [0.25, 0.5]


def test_an_answer_of_one_token_has_no_time_per_token_and_one_without_text_ends_with_its_first() -> None:
    assert record(chunks=(0.5,), ended=0.6, output_tokens=1).tpot is None
    silent = record(ended=0.75, output_tokens=3)
    assert (silent.ttft, silent.tpot, silent.gaps) == (0.75, 0.0, [])


def test_rates_are_over_the_runs_seconds_and_failures_count_apart() -> None:
    measurements = Measurements(
        records=[
            record(chunks=(0.1, 0.2), ended=0.2, output_tokens=2),
            record("b", chunks=(1.0, 2.0), ended=2.0, output_tokens=6, counted=False),
            failed("b", "429"),
            failed("b", "503"),
            failed("b", "429"),
        ],
        sent=6,
        seconds=4.0,
    )
    found = summarise(settings(), measurements, interrupted=True)
    assert (found.sent, found.answered, found.failed, found.rejected, found.uncounted) == (6, 2, 3, 2, 1)
    assert [(kind, told.count) for kind, told in found.failures.items()] == [("429", 2), ("503", 1)]
    assert found.failures["503"].example == "because of 503"
    assert (found.prompt_tokens, found.output_tokens) == (20, 8)
    assert (found.requests_per_second, found.output_tokens_per_second, found.total_tokens_per_second) == (0.5, 2, 7)
    assert found.ttft_ms is not None
    assert found.ttft_ms.mean == pytest.approx(550)
    assert found.goodput is None
    a, b = found.models["a"], found.models["b"]
    assert (a.requests, a.failed, a.ttft_p99_ms) == (1, 0, pytest.approx(100))
    assert (b.requests, b.failed, b.output_tokens) == (4, 3, 6)


def test_goodput_is_what_keeps_every_target_among_all_that_ended() -> None:
    fast = record(chunks=(0.1, 0.2), ended=0.2, output_tokens=2)
    late = record(chunks=(0.9, 1.0), ended=1.0, output_tokens=2)
    slow = record(chunks=(0.1, 1.0), ended=1.0, output_tokens=2)
    short = record(chunks=(0.1,), ended=0.1, output_tokens=1)
    measurements = Measurements(records=[fast, late, slow, short, failed("a", "429")], sent=5, seconds=2.0)

    def good(**targets: float) -> tuple[int, float, float]:
        found = summarise(settings(**targets), measurements, interrupted=False).goodput
        assert found is not None
        return found.requests, found.share, found.requests_per_second

    assert good(ttft_target_ms=500) == (3, 0.6, 1.5)
    assert good(tpot_target_ms=500) == (3, 0.6, 1.5)
    assert good(ttft_target_ms=500, tpot_target_ms=500) == (2, 0.4, 1.0)


def test_a_run_that_answered_nothing_has_no_latencies() -> None:
    found = summarise(settings(), Measurements(records=[failed("a", "429")], sent=1, seconds=1.0), interrupted=False)
    assert (found.ttft_ms, found.tpot_ms, found.itl_ms, found.e2e_ms) == (None, None, None, None)
    assert found.models["b"].ttft_p99_ms is None


def test_requests_that_failed_are_drawn_as_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig

    def saved(figure: Figure, *args: Any, **kwargs: Any) -> None:
        drawn.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", saved)
    answered = record(chunks=[1.0], ended=4.0, output_tokens=1)
    found = Measurements([answered, failed("a", "timeout", 4.0), failed("b", "broken", 2.0)], sent=3, seconds=4.0)
    draw(summarise(settings(), found, interrupted=False), found, tmp_path / "curves.png")
    beside = next(axes for axes in drawn[0].axes if axes.get_ylabel() == "requests in flight")
    (curve,) = beside.patches
    assert list(curve.get_data().values) == pytest.approx(4 * [3.0] + 4 * [2.0])


@given(
    times=st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=5), max_size=10),
    bins=st.integers(1, 20),
)
def test_the_curves_hold_every_token_and_every_second_in_flight(times: list[list[float]], bins: int) -> None:
    records = [record(due=min(chunks), chunks=sorted(chunks), ended=max(chunks), output_tokens=7) for chunks in times]
    edges = [10 * number / bins for number in range(bins + 1)]
    width = 10 / bins
    assert sum(token_rates(records, edges)) * width == pytest.approx(7 * len(records))
    busy = sum(asked.latency for asked in records)
    assert sum(in_flight(records, edges)) * width == pytest.approx(busy, abs=1e-9)
