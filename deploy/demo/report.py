"""What the demo measured: one table for people, one JSON document for everything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from graft_client.schemas.adapters import VersionInfo
from graft_client.schemas.status import ServerStatus


def task_entry(version: VersionInfo) -> dict[str, Any]:
    """One trained adapter beside the base model and the simple baselines, on the same held-out rows."""
    evaluation = version.evaluation
    assert evaluation is not None, f"{version.ref} was not evaluated"
    assert evaluation.base is not None, f"{version.ref} has no figure of the base model"
    metric = evaluation.adapter.primary
    seconds = version.train_seconds or 0.0
    return {
        "task": version.task,
        "adapter": version.ref,
        "metric": metric,
        "higher_is_better": evaluation.adapter.metrics[metric].higher_is_better,
        "base": evaluation.base.score,
        "adapter_score": evaluation.adapter.score,
        "baselines": {name: report.score for name, report in evaluation.baselines.items()},
        "train_rows": version.train_rows,
        "eval_rows": evaluation.adapter.rows,
        "train_seconds": seconds,
        "train_tokens_per_second": (version.train_tokens or 0) / seconds if seconds else 0.0,
    }


def document(status: ServerStatus, versions: list[VersionInfo], mixed_batch: dict[str, Any]) -> dict[str, Any]:
    """The whole report."""
    return {
        "base_model": status.base_model.name,
        "engine": status.engine.name,
        "device": status.engine.device,
        "tasks": [task_entry(version) for version in versions],
        "mixed_batch": mixed_batch,
    }


def write(report: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def show(report: dict[str, Any]) -> None:
    """Print the table; the best figure of each row is marked, whoever it belongs to."""
    console = Console(width=None if Console().is_terminal else 120)
    table = Table(title=f"{report['base_model']} on {report['device']}, {report['engine']} engine")
    for title in ("task", "adapter", "metric", "base", "adapter", "others", "rows", "trained", "tok/s"):
        table.add_column(title, justify="left" if title in ("task", "adapter", "metric", "others") else "right")
    for row in report["tasks"]:
        figures = {"base": row["base"], "adapter": row["adapter_score"], **row["baselines"]}
        best = max(figures.values()) if row["higher_is_better"] else min(figures.values())

        def cell(value: float, best: float = best) -> str:
            text = f"{value:.1f}" if value >= 1.5 else f"{value:.3f}"
            return f"[bold]{text} *[/bold]" if value == best else text

        others = ", ".join(f"{name} {cell(value)}" for name, value in row["baselines"].items())
        table.add_row(
            row["task"],
            row["adapter"],
            row["metric"],
            cell(row["base"]),
            cell(row["adapter_score"]),
            others or "-",
            str(row["eval_rows"]),
            f"{row['train_seconds']:.0f} s",
            f"{row['train_tokens_per_second']:.0f}",
        )
    console.print(table)
    mixed = report["mixed_batch"]
    console.print(
        f"* the best of its row. One mixed batch of {mixed['requests']} requests for {len(mixed['adapters'])} "
        f"adapters: {mixed['tokens_per_second']:.0f} tokens/s; the same for the base model alone: "
        f"{mixed['base_only_tokens_per_second']:.0f} tokens/s."
    )
