"""``graft tasks``: what adapters can be trained for."""

from __future__ import annotations

import json

import click

from graft_client.cli import render
from graft_client.cli.completion import complete_task
from graft_client.cli.lazy import Group
from graft_client.cli.session import Session, with_session


@click.group(cls=Group, examples=["graft tasks list", "graft tasks show translation"])
def tasks() -> None:
    """The kinds of task that adapters are trained for."""


@tasks.command("list", examples=["graft tasks list", "graft tasks list --json"])
@with_session
def list_tasks(session: Session) -> None:
    """List the tasks, with the data formats that each one reads."""
    with session.client() as client:
        found = client.tasks()
    if session.as_json:
        session.emit(found)
    else:
        render.table(["name", "title", "formats", "plugin"], [(t.name, t.title, t.formats, t.plugin) for t in found])


@tasks.command("show", examples=["graft tasks show translation"])
@click.argument("task", shell_complete=complete_task)
@with_session
def show_task(session: Session, task: str) -> None:
    """Show a task: its request and answer, its data formats and what `graft train --set` takes."""
    with session.client() as client:
        found = client.task(task)
        training = client.training()
    if session.as_json:
        session.emit(found)
        return
    render.fields(
        [
            ("name", found.name),
            ("title", found.title),
            ("description", found.description),
            ("plugin", found.plugin),
            ("formats", found.formats),
            ("request", json.dumps(found.example_request, ensure_ascii=False)),
            ("request fields", _field_names(found.request_schema)),
            ("answer fields", _field_names(found.response_schema)),
            ("example fields", _field_names(found.example_schema)),
        ]
    )
    click.echo("\nTraining options, for `graft train --set NAME=VALUE`:\n")
    render.table(
        ["name", "type", "default", "meaning"],
        [
            (option.name, option.type, found.training_defaults.get(option.name, option.default), option.description)
            for option in training.options
        ],
    )
    for method in training.methods:
        click.echo(f"\n--method {method.name}: {method.description}\n")
        if method.options:
            render.table(
                ["name", "type", "default", "meaning"],
                [(option.name, option.type, option.default, option.description) for option in method.options],
            )


def _field_names(schema: dict[str, object]) -> list[str]:
    """The properties of a JSON schema, those that may be left out in brackets."""
    properties = schema.get("properties")
    required = schema.get("required")
    if not isinstance(properties, dict):
        return []
    needed = required if isinstance(required, list) else []
    return [name if name in needed else f"[{name}]" for name in properties]
