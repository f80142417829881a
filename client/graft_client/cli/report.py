"""The table of an evaluation: each metric of the base model, the adapter and the baselines, side by side."""

from __future__ import annotations

import click

from graft_client.cli import render
from graft_client.schemas.adapters import EvaluationSummary


def show_evaluation(summary: EvaluationSummary, *, adapter: str, against: str = "base") -> None:
    """Prints the metrics, the primary one first, and says where a baseline beats the adapter."""
    measured = summary.adapter
    baselines = sorted(summary.baselines)
    columns = ["metric"]
    if summary.base is not None:
        columns.append(against)
    columns.append(adapter)
    if summary.base is not None:
        columns.append("change")
    columns += baselines

    names = sorted(measured.metrics, key=lambda name: (name != measured.primary, name))
    rows = []
    for name in names:
        metric = measured.metrics[name]
        row: list[object] = [name if metric.higher_is_better else f"{name} (lower is better)"]
        other = summary.base.metrics.get(name) if summary.base is not None else None
        if summary.base is not None:
            row.append(other.value if other is not None else None)
        row.append(metric.value)
        if summary.base is not None:
            row.append(f"{metric.value - other.value:+.4g}" if other is not None else None)
        for baseline in baselines:
            value = summary.baselines[baseline].metrics.get(name)
            row.append(value.value if value is not None else None)
        rows.append(row)
    render.table(columns, rows, right=columns[1:])
    _print_notes(summary, adapter)


def _print_notes(summary: EvaluationSummary, adapter: str) -> None:
    """How many rows were measured, and each baseline that does better on the primary metric."""
    primary = summary.adapter.primary
    metric = summary.adapter.metrics[primary]
    sign = 1 if metric.higher_is_better else -1
    click.echo(f"{summary.adapter.rows} held-out rows; the main metric is {primary}")
    for name, report in sorted(summary.baselines.items()):
        other = report.metrics.get(primary)
        if other is not None and sign * other.value > sign * metric.value:
            click.echo(f"the {name} baseline does better than {adapter} on {primary}")
