"""``graft audit``: the log of changes."""

from __future__ import annotations

import json

import click

from graft_client.cli import render
from graft_client.cli.lazy import Command
from graft_client.cli.session import Session, with_session


@click.command(
    cls=Command, examples=["graft audit", "graft audit --target de-strings@3", "graft audit --limit 1000 --json"]
)
@click.option("--target", help="Only changes of this, e.g. name@N or a key's id.")
@click.option("--before", type=click.IntRange(min=1), help="Only entries before this number.")
@click.option("--limit", type=click.IntRange(1, 1000), help="At most this many, the newest first.")
@with_session
def audit(session: Session, target: str | None, before: int | None, limit: int | None) -> None:
    """Show who changed what, the newest first. Needs a key with the scope admin."""
    with session.client() as client:
        found = client.audit(target=target, before=before, limit=limit)
    if session.as_json:
        session.emit(found)
        return
    render.table(
        ["number", "time", "by", "change", "of", "detail"],
        [(e.seq, e.time, e.actor, e.action, e.target, json.dumps(e.detail) if e.detail else "") for e in found],
        right=("number",),
    )
