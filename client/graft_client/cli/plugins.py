"""``graft plugins``: what extends the server, and what failed to."""

from __future__ import annotations

import click

from graft_client.cli import render
from graft_client.cli.lazy import Group
from graft_client.cli.session import Session, with_session


@click.group(cls=Group, examples=["graft plugins list"])
def plugins() -> None:
    """The plugins that the server has loaded."""


@plugins.command("list", examples=["graft plugins list", "graft plugins list --json"])
@with_session
def list_plugins(session: Session) -> None:
    """List plugins with what they register, and the faults of those that were left out."""
    with session.client() as client:
        found = client.plugins()
    if session.as_json:
        session.emit(found)
        return
    render.table(
        ["name", "version", "tasks", "readers", "methods", "routers", "observes"],
        [(p.name, p.version, p.tasks, p.readers, p.methods, p.routers, p.observes) for p in found.plugins],
    )
    for fault in found.faults:
        hook = f", {fault.hook}" if fault.hook else ""
        place = f", {fault.file}:{fault.line}" if fault.file and fault.line else f", {fault.file}" * bool(fault.file)
        click.echo(render.printable(f"left out: {fault.plugin}{hook}{place}: {fault.error}"), err=True)
