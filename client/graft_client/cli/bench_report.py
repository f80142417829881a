"""What ``graft bench`` prints: what was done, how fast, and the table of latencies."""

from __future__ import annotations

import click

from graft_client.bench.result import BenchResult
from graft_client.bench.statistics import Distribution
from graft_client.cli import render

#: Milliseconds. Above it the load generator's own lateness shows in the latencies.
_LAG_TO_TELL = 20


def show_result(result: BenchResult) -> None:
    """Prints the figures of a run."""
    goodput = result.goodput
    render.fields(
        [
            ("requests", _requests(result)),
            (
                "throughput",
                f"{result.requests_per_second:.2f} requests/s, {result.output_tokens_per_second:,.1f} output tokens/s,"
                f" {result.total_tokens_per_second:,.1f} tokens/s with the prompts",
            ),
            ("tokens", f"{result.prompt_tokens:,} in prompts, {result.output_tokens:,} in answers"),
            ("goodput", f"{goodput.requests_per_second:.2f} requests/s, {goodput.share:.1%}" if goodput else None),
            (
                "failures",
                "\n".join(f"{kind}: {found.count}, e.g. {found.example}" for kind, found in result.failures.items())
                or None,
            ),
        ]
    )
    rows = [
        _row("time to first token", result.ttft_ms),
        _row("time per output token", result.tpot_ms),
        _row("inter-token latency", result.itl_ms),
        _row("end-to-end latency", result.e2e_ms),
    ]
    click.echo()
    columns = ["milliseconds", *Distribution.model_fields]
    render.table(columns, rows, right=columns[1:])


def notes(result: BenchResult) -> list[str]:
    """What a reader of the figures should know, a sentence each."""
    said = []
    if result.interrupted:
        in_flight = result.sent - result.answered - result.failed
        said.append(f"interrupted; what was in flight is left out ({in_flight})")
    if result.uncounted:
        said.append(
            f"{result.uncounted} answers named no token numbers: the pieces of their streams and the words of their"
            " prompts are counted instead"
        )
    if result.lag_ms is not None and result.lag_ms.p99 > _LAG_TO_TELL:
        said.append(
            f"this process itself was up to {result.lag_ms.p99:.0f} ms late (p99), which the latencies include;"
            " run it where there is more CPU, or with less load"
        )
    return said


def _requests(result: BenchResult) -> str:
    text = f"{result.answered:,} answered"
    if result.failed:
        text += f", {result.failed:,} failed"
    if result.rejected:
        text += f" ({result.rejected:,} of them with 429, too many requests)"
    return f"{text}, in {render.duration(result.seconds)}"


def _row(name: str, figures: Distribution | None) -> list[object]:
    values = [None] * len(Distribution.model_fields) if figures is None else list(figures.model_dump().values())
    return [name, *values]
