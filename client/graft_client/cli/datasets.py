"""``graft datasets``: look at data before training, and at what is stored."""

from __future__ import annotations

import json
from pathlib import Path

import click

from graft_client.cli import render
from graft_client.cli.completion import complete_dataset, complete_task
from graft_client.cli.confirm import confirmed
from graft_client.cli.lazy import Group
from graft_client.cli.progress import byte_bar
from graft_client.cli.session import Session, with_session
from graft_client.cli.uploads import total_bytes

_MOST_ERRORS = 20


@click.group(cls=Group, examples=["graft datasets check strings.jsonl --task translation", "graft datasets list"])
def datasets() -> None:
    """Check, list and delete training data."""


@datasets.command(
    "check",
    examples=[
        "graft datasets check strings.jsonl --task translation",
        "graft datasets check ./ml-100k --task recommendation",
    ],
)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--task", required=True, shell_complete=complete_task, help="The task the data is for.")
@click.option("--format", help="The data's format, where it can't be told from the files.")
@with_session
def check(session: Session, files: tuple[Path, ...], task: str, format: str | None) -> None:  # noqa: A002
    """Read FILES (or the files of a folder) as training data and report every bad row; nothing is stored.

    Exits with 5 where there are bad rows.
    """
    with session.client() as client, byte_bar("checking", total_bytes(files)) as tell:
        found = client.check_dataset(files, task=task, format=format, skip_bad=True, progress=tell)
    if session.as_json:
        session.emit(found)
    else:
        render.fields(
            [
                ("task", found.task),
                ("format", found.format),
                ("rows", found.rows),
                ("bad rows", found.bad_rows),
                ("for training", found.train_rows),
                ("held out", found.test_rows),
            ]
        )
        for example in found.examples[:3]:
            filled = {name: value for name, value in example.items() if value not in (None, "")}
            click.echo(f"example: {render.printable(json.dumps(filled, ensure_ascii=False))}")
        for fault in found.errors[:_MOST_ERRORS]:
            click.echo(render.printable(f"{fault.place}: {fault.message}"), err=True)
        more = max(found.bad_rows, len(found.errors)) - _MOST_ERRORS
        if more > 0:
            click.echo(f"and {more} more", err=True)
    if found.bad_rows or found.errors:
        raise click.exceptions.Exit(5)


@datasets.command("list", examples=["graft datasets list --task translation"])
@click.option("--task", shell_complete=complete_task, help="Only those of this task.")
@with_session
def list_datasets(session: Session, task: str | None) -> None:
    """List the stored datasets."""
    with session.client() as client:
        found = client.datasets(task=task)
    if session.as_json:
        session.emit(found)
    else:
        render.table(
            ["id", "task", "format", "rows", "bad rows", "files", "stored"],
            [(d.id, d.task, d.format, d.rows, d.bad_rows, [f.name for f in d.files], d.created_at) for d in found],
            right=("rows", "bad rows"),
        )


@datasets.command("show", examples=["graft datasets show ds-3f9a"])
@click.argument("dataset", shell_complete=complete_dataset)
@with_session
def show(session: Session, dataset: str) -> None:
    """Show a stored dataset and its files."""
    with session.client() as client:
        found = client.dataset(dataset)
    if session.as_json:
        session.emit(found)
        return
    render.fields(
        [
            ("id", found.id),
            ("task", found.task),
            ("format", found.format),
            ("rows", found.rows),
            ("bad rows", found.bad_rows),
            ("stored", found.created_at),
        ]
    )
    click.echo()
    render.table(
        ["file", "size", "sha256"],
        [(file.name, render.size(file.size_bytes), file.sha256) for file in found.files],
        right=("size",),
    )


@datasets.command("delete", examples=["graft datasets delete ds-3f9a --yes"])
@click.argument("dataset", shell_complete=complete_dataset)
@click.option("--yes", is_flag=True, help="Don't ask.")
@with_session
def delete(session: Session, dataset: str, yes: bool) -> None:
    """Delete a stored dataset. Adapters that were trained on it stay."""
    with session.client() as client:
        confirmed(f"Delete dataset {dataset}?", yes=yes)
        client.delete_dataset(dataset)
    if session.as_json:
        session.emit({"deleted": dataset})
    else:
        click.echo(f"deleted {dataset}")
