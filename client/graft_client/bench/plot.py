"""A run as a picture: how its latencies are distributed, and its throughput over time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft_client.bench.records import Measurements, Record
from graft_client.bench.statistics import percentile
from graft_client.errors import GraftError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from graft_client.bench.result import BenchResult

SUFFIXES = (".png", ".svg", ".pdf")

_LINE, _SECOND, _TARGET, _QUIET = "#1f6f8b", "#d1812d", "#b3322c", "#6b7280"
#: The throughput's curve is drawn in bins of half a second, or longer ones where there would be too many.
_LEAST_BIN, _MOST_BINS = 0.5, 120


def check_plot(file: Path) -> None:
    """Whether a plot can be drawn to ``file``, asked before a run that may take long.

    Raises:
        UsageError: the name ends in none of ``SUFFIXES``.
        GraftError: matplotlib is not installed.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{file}: a plot's name ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise GraftError(
            f"a plot needs matplotlib ({error.name} is missing); install it with: pip install 'graftwork[bench]'"
        ) from error


def draw(result: BenchResult, measurements: Measurements, file: Path) -> None:
    """Writes the picture. Its format follows from the file's name."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    answered = measurements.answered
    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold", "font.size": 10}
    with rc_context(style):
        figure = Figure(figsize=(10, 6.5), layout="constrained")
        axes: dict[str, Any] = figure.subplot_mosaic([["ttft", "tpot"], ["rate", "rate"]])
        figure.suptitle(_title(result), fontsize=11, x=0.01, ha="left")
        settings = result.settings
        _cdf(axes["ttft"], "Time to first token", [record.ttft for record in answered], settings.ttft_target_ms)
        tpot = [record.tpot for record in answered if record.tpot is not None]
        _cdf(axes["tpot"], "Time per output token", tpot, settings.tpot_target_ms)
        _throughput(axes["rate"], measurements, result.seconds)
        figure.savefig(file, dpi=150)


def token_rates(records: Iterable[Record], edges: Sequence[float]) -> list[float]:
    """Output tokens a second in each bin between two ``edges``. A request's tokens are spread evenly over its pieces
    of text, for a stream says how many there were only at its end."""
    width = edges[1] - edges[0]
    rates = [0.0] * (len(edges) - 1)
    for record in records:
        for moment in record.chunks:
            rates[_bin(moment, edges)] += record.output_tokens / len(record.chunks) / width
    return rates


def in_flight(records: Iterable[Record], edges: Sequence[float]) -> list[float]:
    """How many requests were under way, on average, in each bin between two ``edges``."""
    width = edges[1] - edges[0]
    running = [0.0] * (len(edges) - 1)
    for record in records:
        first, last = (_bin(moment, edges) for moment in (record.due, record.ended))
        for bin_ in range(first, last + 1):
            running[bin_] += (min(record.ended, edges[bin_ + 1]) - max(record.due, edges[bin_])) / width
    return running


def _bin(moment: float, edges: Sequence[float]) -> int:
    return min(max(bisect_right(edges, moment) - 1, 0), len(edges) - 2)


def _title(result: BenchResult) -> str:
    settings = result.settings
    load = f"{settings.rate:g} requests/s" if settings.rate is not None else f"{settings.concurrency} clients"
    models = settings.models[0] if len(settings.models) == 1 else f"{len(settings.models)} models"
    return (
        f"{models}, {load}: {result.answered} answers in {result.seconds:.1f} s, "
        f"{result.requests_per_second:.2f} requests/s, {result.output_tokens_per_second:,.0f} output tokens/s"
    )


def _cdf(axes: Axes, title: str, seconds: Sequence[float], target_ms: float | None) -> None:
    """The share of requests that took at most so long, with the median and the 99th percentile marked."""
    axes.set(
        title=title, xlabel="milliseconds", ylabel="share of requests", ylim=(0, 1.12), yticks=[0, 0.25, 0.5, 0.75, 1]
    )
    axes.grid(alpha=0.25)
    if not seconds:
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color=_QUIET)
        return
    ordered = sorted(1000 * value for value in seconds)
    shares = [(rank + 1) / len(ordered) for rank in range(len(ordered))]
    axes.set_xlim(0, max(ordered[-1], target_ms or 0) * 1.08)
    axes.step([ordered[0], *ordered], [0.0, *shares], where="post", color=_LINE, linewidth=1.8)
    for percent, at, align in ((50, (8, -4), "left"), (99, (0, 7), "center")):
        value = percentile(ordered, percent)
        axes.plot([value], [percent / 100], "o", color=_LINE, markersize=5)
        label = f"p{percent} {value:,.0f} ms" if value >= 100 else f"p{percent} {value:.3g} ms"
        axes.annotate(label, (value, percent / 100), xytext=at, textcoords="offset points", ha=align)
    if target_ms is not None:
        axes.axvline(target_ms, color=_TARGET, linestyle="--", linewidth=1.2, label=f"target {target_ms:g} ms")
        axes.legend(loc="lower right", framealpha=1, edgecolor="none")


def _throughput(axes: Axes, measurements: Measurements, seconds: float) -> None:
    bins = max(1, min(_MOST_BINS, round(seconds / _LEAST_BIN)))
    edges = [seconds * number / bins for number in range(bins + 1)]
    rates = token_rates(measurements.answered, edges)
    axes.stairs(rates, edges, color=_LINE, fill=True, alpha=0.2)
    axes.stairs(rates, edges, color=_LINE, linewidth=1.8)
    axes.set(title="Throughput over time", xlabel="seconds", xlim=(0, seconds), ylim=(0, max(rates) * 1.1 or 1))
    axes.set_ylabel("output tokens/s", color=_LINE)
    axes.grid(alpha=0.25)
    # With those that failed: the server had them as well.
    running = in_flight(measurements.records, edges)
    beside = axes.twinx()
    beside.stairs(running, edges, color=_SECOND, linewidth=1.5, baseline=None)
    beside.set_ylim(0, max(running) * 1.1 or 1)
    beside.set_ylabel("requests in flight", color=_SECOND)
