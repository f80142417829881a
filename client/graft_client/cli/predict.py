"""``graft predict``: a file of requests in, a file of answers out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graft_client.cli.completion import complete_adapter, complete_task
from graft_client.cli.lazy import Command
from graft_client.cli.progress import count_bar
from graft_client.cli.sampling import sampling_options
from graft_client.cli.session import Session, with_session

if TYPE_CHECKING:
    from graft_client.schemas.predict import SamplingOverrides

_MOST_TOLD = 5


@click.command(
    cls=Command,
    examples=[
        "graft predict de-strings in.jsonl -o out.jsonl",
        "graft predict base in.jsonl -o out.jsonl --task translation --concurrency 8",
    ],
)
@click.argument("adapter", shell_complete=complete_adapter)
@click.argument("requests", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file of answers."
)
@click.option("--task", shell_complete=complete_task, help="The task, for ADAPTER `base`.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Bulk requests of 64 rows each on their way at once.",
)
@click.option("--force", is_flag=True, help="Replace an output that is complete already.")
@sampling_options
@with_session
def predict(
    session: Session,
    adapter: str,
    requests: Path,
    output: Path,
    task: str | None,
    concurrency: int,
    force: bool,
    sampling: SamplingOverrides | None,
) -> None:
    """Answer each line of REQUESTS (JSONL) with ADAPTER and write the answers in the same order.

    A line is {"text": "..."} or a request by the task's schema; "adapter" in it overrides ADAPTER, "id" is
    copied. A run that was stopped goes on where it was when the same command is given again. Rows that fail have
    a "problem" in the output and make the exit code 1; the same command tries those again.
    """
    from graft_client.cli.bulk import Outcome, answer_rows, read_rows, write_output
    from graft_client.cli.journal import Journal
    from graft_client.cli.targets import task_of
    from graft_client.errors import GraftError

    rows = read_rows(requests, adapter=adapter, task=task, sampling=sampling)
    kept = output.with_name(output.name + ".partial")
    if output.exists() and not kept.exists() and not force:
        raise click.UsageError(f"{output} is there and complete; give --force to replace it")
    with session.client() as client:
        task_of(client, adapter, task)
    with Journal(kept) as journal:
        outcome = Outcome(journal, {})
        done = sum(row.key in journal.rows for row in rows)
        if done:
            session.note(f"going on: {done} of {len(rows)} rows were done before")
        with count_bar(session, "predicting", len(rows), start=done) as tell:
            try:
                asyncio.run(
                    answer_rows(
                        rows,
                        outcome,
                        url=session.url,
                        key=session.key,
                        concurrency=concurrency,
                        told=lambda settled: tell(settled, len(rows)),
                    )
                )
            except (GraftError, OSError, KeyboardInterrupt):
                done = sum(row.key in journal.rows for row in rows)
                session.note(f"\nstopped with {done} of {len(rows)} rows done; the same command goes on from there")
                raise
        write_output(output, rows, outcome)
    if not outcome.problems:
        kept.unlink()
    failed = [number for number, row in enumerate(rows, start=1) if row.key in outcome.problems]
    if session.as_json:
        session.emit({"output": str(output), "rows": len(rows), "failed": failed})
    else:
        click.echo(f"wrote {len(rows)} rows to {output}" + (f", {len(failed)} of them failed" if failed else ""))
    for number in failed[:_MOST_TOLD]:
        session.note(f"row {number}: {outcome.problems[rows[number - 1].key].detail}")
    if failed:
        session.note("the same command tries the failed rows again")
        raise click.exceptions.Exit(1)
