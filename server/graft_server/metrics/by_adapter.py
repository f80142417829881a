"""What model requests cost, by adapter and in total, with few labels whatever adapters are asked.

The label is the adapter's name: a new version goes on where the one before it was. The names that are asked most have
one (see ``TopNames``), the base model is ``base``, and all others are ``other``. When a name loses its label, its
series ends and what it had counted moves into ``other``. So no series ever falls, and the sum over all labels is the
true total at every scrape; a name that gets its label back begins at nought, which Prometheus takes for the restart
of a counter.

The price is that ``other`` jumps at such a move, by requests that ``rate()`` has seen before under their own name. The
totals therefore stand beside the figures by adapter, in families without an adapter's label: they are the sums, so
they agree, and they never jump. ``graft_adapter_labels_moved_total`` tells when a jump was a move.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from graft_server.metrics.buckets import Buckets
from graft_server.metrics.top_names import TopNames

BASE = "base"
OTHER = "other"

#: The histograms: name, documentation and upper bounds in seconds, in the order of ``Served.times``.
_TIMES = (
    (
        "queue_seconds",
        "Seconds a model request waited",
        (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
    ),
    (
        "time_to_first_token_seconds",
        "Seconds from arrival to the first token",
        (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0),
    ),
    (
        "time_per_output_token_seconds",
        "Mean seconds a token after the first, one value a request",
        (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    ),
    (
        "request_seconds",
        "Seconds from arrival to the whole answer",
        (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0),
    ),
)


@dataclass(frozen=True, slots=True)
class Served:
    """One model request that is over. Times are in seconds, ``None`` where there was nothing to time.

    ``adapter`` is a name without its version, ``None`` for the base model; ``outcome`` is ``ok``, ``aborted`` or a
    problem's code. ``first_token`` and ``total`` count from the arrival, ``per_token`` is the mean of what followed.
    """

    adapter: str | None
    outcome: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queued: float | None = None
    first_token: float | None = None
    per_token: float | None = None
    total: float | None = None

    @property
    def times(self) -> tuple[float | None, ...]:
        return self.queued, self.first_token, self.per_token, self.total


@dataclass(slots=True)
class _Figures:
    """The sums of one label."""

    outcomes: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    times: list[Buckets] = field(default_factory=lambda: [Buckets(bounds) for _, _, bounds in _TIMES])

    def observe(self, served: Served) -> None:
        self.outcomes[served.outcome] += 1
        self.prompt_tokens += served.prompt_tokens
        self.completion_tokens += served.completion_tokens
        for buckets, seconds in zip(self.times, served.times, strict=True):
            if seconds is not None:
                buckets.observe(seconds)

    def add(self, other: _Figures) -> None:
        self.outcomes.update(other.outcomes)
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        for buckets, more in zip(self.times, other.times, strict=True):
            buckets.add(more)


class RequestFigures(Collector):
    """Counts model requests; at most ``adapters`` names have a label besides ``base`` and ``other``.

    ``observe`` takes a few microseconds. It and ``collect`` may run in different threads.
    """

    def __init__(self, adapters: int) -> None:
        self._top = TopNames(adapters)
        self._figures = {BASE: _Figures(), OTHER: _Figures()}
        self._moved = 0
        self._lock = threading.Lock()

    def observe(self, served: Served) -> None:
        with self._lock:
            self._of(served.adapter).observe(served)

    def _of(self, adapter: str | None) -> _Figures:
        if adapter is None:
            return self._figures[BASE]
        # An adapter may have this very name; it counts as one of the others then, however often it is asked.
        if adapter == OTHER:
            return self._figures[OTHER]
        lost = self._top.count(adapter)
        if lost is not None:
            self._figures[OTHER].add(self._figures.pop(lost))
            self._moved += 1
        if adapter not in self._top:
            return self._figures[OTHER]
        if adapter not in self._figures:
            self._figures[adapter] = _Figures()
        return self._figures[adapter]

    def collect(self) -> Iterator[Metric]:
        total = _Figures()
        by_label = {}
        with self._lock:
            moved = self._moved
            for label, figures in self._figures.items():
                by_label[label] = _Figures()
                by_label[label].add(figures)
                total.add(figures)
        yield from _families({(): total})
        yield from _families({(label,): figures for label, figures in by_label.items()}, ("adapter",))
        yield CounterMetricFamily(
            "graft_adapter_labels_moved", "Adapters whose figures moved into `other`, for a busier one.", moved
        )


def _families(rows: Mapping[tuple[str, ...], _Figures], names: Sequence[str] = ()) -> Iterator[Metric]:
    """The families of figures by the values of the labels ``names``."""
    prefix = "".join(["graft_", *(f"{name}_" for name in names)])
    by = "".join(f"{name} and " for name in names)
    requests = CounterMetricFamily(
        f"{prefix}predictions", f"Model requests by {by}outcome.", labels=[*names, "outcome"]
    )
    tokens = CounterMetricFamily(
        f"{prefix}tokens", f"Tokens by {by}kind: prompt or completion.", labels=[*names, "kind"]
    )
    for label, figures in rows.items():
        for outcome, count in figures.outcomes.items():
            requests.add_metric([*label, outcome], count)
        tokens.add_metric([*label, "prompt"], figures.prompt_tokens)
        tokens.add_metric([*label, "completion"], figures.completion_tokens)
    yield requests
    yield tokens
    by = "".join(f", by {name}" for name in names)
    for place, (name, documentation, _) in enumerate(_TIMES):
        histogram = HistogramMetricFamily(f"{prefix}{name}", f"{documentation}{by}.", labels=names)
        for label, figures in rows.items():
            buckets = figures.times[place]
            histogram.add_metric(label, list(buckets.cumulative()), buckets.sum)
        yield histogram
