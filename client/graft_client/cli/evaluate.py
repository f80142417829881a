"""``graft evaluate``: how good an adapter is on rows of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from graft_client.cli.completion import complete_adapter, complete_task
from graft_client.cli.lazy import Command
from graft_client.cli.progress import byte_bar, count_bar
from graft_client.cli.session import Session, with_session
from graft_client.cli.uploads import total_bytes


@click.command(
    cls=Command,
    examples=[
        "graft evaluate de-strings --data test.jsonl --against base",
        "graft evaluate de-strings@2 --data test.jsonl --against de-strings@1 --limit 200 --json",
    ],
)
@click.argument("adapter", shell_complete=complete_adapter)
@click.option(
    "--data",
    multiple=True,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="A file of examples, or a folder of them; can be given again.",
)
@click.option("--against", shell_complete=complete_adapter, help="`base` or another adapter, on the same rows.")
@click.option("--limit", type=click.IntRange(min=1), help="Only this many rows.")
@click.option("--task", shell_complete=complete_task, help="The task to measure, for ADAPTER `base`.")
@click.option("--format", help="The data's format, where it can't be told from the files.")
@click.option("--skip-bad", is_flag=True, help="Leave bad rows out instead of refusing the data.")
@with_session
def evaluate(
    session: Session,
    adapter: str,
    data: tuple[Path, ...],
    against: str | None,
    limit: int | None,
    task: str | None,
    format: str | None,  # noqa: A002
    skip_bad: bool,
) -> None:
    """Measure ADAPTER on files of examples with its task's own metrics.

    Rows that the adapter was trained on are left out where the data is what it was trained from.
    """
    from graft_client.cli.report import show_evaluation
    from graft_client.cli.targets import task_of
    from graft_client.errors import ProtocolError
    from graft_client.schemas.predict import EvaluationEvent

    with session.client() as client:
        found = task_of(client, adapter, task)
        with byte_bar("uploading", total_bytes(data)) as tell:
            dataset = client.upload_dataset(data, task=found, format=format, skip_bad=skip_bad, progress=tell)
        total = min(dataset.rows, limit or dataset.rows) * (2 if against else 1)
        last: EvaluationEvent | None = None
        with count_bar(session, "evaluating", total) as tell_done:
            for last in client.evaluate(adapter, dataset=dataset.id, task=task, against=against, limit=limit):
                tell_done(last.done, last.total)
    if last is None or last.summary is None:
        raise ProtocolError("the server ended the evaluation before it was complete")
    if session.as_json:
        session.emit(last)
    else:
        show_evaluation(last.summary, adapter=last.adapter or adapter, against=last.against or against or "base")
