"""``graft train``: from files of examples to a published adapter version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from graft_client.cli.completion import complete_adapter, complete_method, complete_task
from graft_client.cli.lazy import Command
from graft_client.cli.progress import byte_bar
from graft_client.cli.session import Session, with_session
from graft_client.cli.uploads import total_bytes


@click.command(
    cls=Command,
    examples=[
        "graft train translation --data strings.jsonl --name de-strings",
        "graft train translation --data strings.jsonl --name de-strings --set r=16 --set epochs=2",
        "graft train recommendation --data ./ml-100k --name films --method bottleneck --detach",
    ],
)
@click.argument("task", shell_complete=complete_task)
@click.option(
    "--data",
    "data",
    multiple=True,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="A file of examples, or a folder of them; can be given again.",
)
@click.option("--name", required=True, shell_complete=complete_adapter, help="The adapter to publish a version of.")
@click.option(
    "--method",
    default="lora",
    show_default=True,
    shell_complete=complete_method,
    help="How the adapter is built.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A training or method option (see `graft tasks show`); can be given again.",
)
@click.option("--seed", type=int, help="Makes the run repeatable; the same as --set seed=N.")
@click.option("--format", help="The data's format, where it can't be told from the files.")
@click.option("--skip-bad", is_flag=True, help="Leave bad rows out instead of refusing the data.")
@click.option("--detach", is_flag=True, help="Queue the job and return at once.")
@with_session
def train(
    session: Session,
    task: str,
    data: tuple[Path, ...],
    name: str,
    method: str,
    settings: tuple[str, ...],
    seed: int | None,
    format: str | None,  # noqa: A002
    skip_bad: bool,
    detach: bool,
) -> None:
    """Train an adapter for TASK, follow the job, and compare the result with the base model.

    Ctrl-C stops following; the job goes on. Exits with 7 where the job fails.
    """
    from graft_client.cli.follow import follow_job

    options = dict(parse_setting(setting) for setting in settings)
    if seed is not None:
        options["seed"] = seed
    with session.client() as client:
        # What is refused is refused before a long upload.
        client.check_job(task=task, adapter=name, method=method, options=options)
        with byte_bar("uploading", total_bytes(data)) as tell:
            dataset = client.upload_dataset(data, task=task, format=format, skip_bad=skip_bad, progress=tell)
        left_out = f", left out as bad: {dataset.bad_rows}" if dataset.bad_rows else ""
        session.note(f"{dataset.rows} rows ({dataset.format}){left_out}; dataset {dataset.id}")
        job = client.create_job(task=task, dataset=dataset.id, adapter=name, method=method, options=options)
        if detach:
            if session.as_json:
                session.emit(job)
            else:
                click.echo(job.id)
                session.note(f"queued; follow it with: graft jobs follow {job.id}")
            return
        session.note(f"job {job.id}; Ctrl-C stops following, not the job")
        follow_job(session, client, job.id)


def parse_setting(text: str) -> tuple[str, Any]:
    """``name=value``; the value is JSON where it reads as JSON (numbers, true, null, lists), else a string."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"`{text}` is not NAME=VALUE", param_hint="--set")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
