"""What each figure must reach, and the table that says whether it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table


@dataclass(frozen=True)
class Bound:
    """A limit that a figure keeps to from one side."""

    side: Literal["at least", "at most"]
    limit: float

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.side == "at least" else value <= self.limit

    def __str__(self) -> str:
        return f"{self.side} {self.limit:.2f}"


def at_least(limit: float) -> Bound:
    return Bound("at least", limit)


def at_most(limit: float) -> Bound:
    return Bound("at most", limit)


BOUNDS: Mapping[str, Bound] = {
    "train_over_trainer": at_least(1.5),
    "mixed8_over_base": at_least(0.85),
    "mixed32_over_base": at_least(0.75),
    "mixed8_over_peft": at_least(2.5),
    "base_over_generate": at_least(1.0),
    "stream_over_generate": at_least(1.5),
    "http_over_engine": at_least(0.95),
    "v1_over_engine": at_least(0.95),
    "slots64over8": at_least(0.7),
    "tpot_p99_while_loading": at_most(1.3),
    "ttft_disk_over_slot": at_most(2.0),
    "startup_10k_over_10": at_most(1.2),
    "resolve_10k_over_10": at_most(1.2),
    "resolve_task_10k_over_10": at_most(1.2),
    "quiet_p99_under_flood": at_most(2.0),
    "auto_right": at_least(0.95),
    "auto_rejected": at_least(0.9),
    "auto_ms_1000": at_most(10.0),
    "vllm_mixed8_over_base": at_least(0.85),
    "vllm_mixed8_over_stock": at_least(3.5),
    "vllm_ours_over_serve_same_wrapper": at_least(1.0),
    "vllm_ours_over_serve": at_least(3.0),
    "vllm_cliff_throughput": at_least(1.5),
    "vllm_cliff_p99": at_most(0.8),
    "vllm_slots64over8": at_least(0.7),
}


def verdict(figure: Mapping[str, Any], bounds: Mapping[str, Bound] = BOUNDS) -> str:
    """``reached`` or ``MISSED``; empty for a figure without a bound."""
    bound = bounds.get(figure["name"])
    if bound is None:
        return ""
    return "reached" if bound.holds(figure["value"]) else "MISSED"


def summary(figures: Iterable[Mapping[str, Any]], bounds: Mapping[str, Bound] = BOUNDS) -> Table:
    """All figures, as the reports have them, with their bounds and verdicts."""
    table = Table(title="all figures")
    for column in ("figure", "value", "bound", "numerator", "denominator", ""):
        table.add_column(column)
    for figure in figures:
        sides = (figure["numerator"], figure["denominator"])
        table.add_row(
            figure["name"],
            f"{figure['value']:.3g}",
            str(bounds.get(figure["name"], "")),
            *("" if side is None else f"{side:.4g}" for side in sides),
            verdict(figure, bounds),
        )
    return table
