"""``graft adapters promote`` and its like: which version an alias stands for, its history, and old versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from graft_client.cli import render
from graft_client.cli.completion import PRODUCTION, complete_adapter, complete_alias
from graft_client.cli.confirm import confirmed
from graft_client.cli.lazy import Command
from graft_client.cli.progress import byte_bar, count_bar
from graft_client.cli.session import Session, with_session
from graft_client.cli.targets import split_ref, version_of

if TYPE_CHECKING:
    from graft_client import Client
    from graft_client.schemas.lifecycle import AliasEvent, GcReport

_WHY = click.option("-m", "--why", default="", help="The reason, which is kept in the history.")


@click.command(
    "promote",
    cls=Command,
    examples=[
        "graft adapters promote de-strings@7 production",
        'graft adapters promote de-strings@7 --gate test.jsonl --min-delta 0.5 -m "more rows"',
        "graft adapters promote de-strings@staging production",
    ],
)
@click.argument("adapter", shell_complete=complete_adapter)
@click.argument("alias", default=PRODUCTION, shell_complete=complete_alias)
@click.option(
    "--gate",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="A file of examples to measure on first, or a folder of them; can be given again.",
)
@click.option(
    "--min-delta",
    type=float,
    default=0.0,
    show_default=True,
    help="With --gate: by how much the main metric must be better than that of the version in place.",
)
@click.option("--limit", type=click.IntRange(min=1), help="With --gate: only this many rows.")
@_WHY
@with_session
def promote(
    session: Session, adapter: str, alias: str, gate: tuple[Path, ...], min_delta: float, limit: int | None, why: str
) -> None:
    """Let ALIAS (`production`, if it is left out) stand for a version, once the server has read it.

    Callers of `name@production` are answered by it from then on. With --gate it is first measured beside the version in
    place, or the base model, and refused where it is worse. Where somebody else moves the alias meanwhile, nothing
    is changed.
    """
    with session.client() as client:
        name, number = version_of(client, adapter)
        in_place = client.adapter(name).aliases.get(alias, 0)
        if gate:
            event = _behind_gate(
                session, client, name, number, alias, gate, min_delta=min_delta, limit=limit, why=why, in_place=in_place
            )
        else:
            event = client.promote(name, number, alias, why=why, in_place=in_place)
    _tell(session, event)


@click.command(
    "rollback",
    cls=Command,
    examples=["graft adapters rollback de-strings", 'graft adapters rollback de-strings staging -m "worse in German"'],
)
@click.argument("adapter", shell_complete=complete_adapter)
@click.argument("alias", default=PRODUCTION, shell_complete=complete_alias)
@_WHY
@with_session
def rollback(session: Session, adapter: str, alias: str, why: str) -> None:
    """Let ALIAS stand again for the version that was in place before; again, and it goes back further."""
    with session.client() as client:
        event = client.rollback(_name(adapter), alias, why=why)
    _tell(session, event)


@click.command("history", cls=Command, examples=["graft adapters history de-strings --alias production"])
@click.argument("adapter", shell_complete=complete_adapter)
@click.option("--alias", shell_complete=complete_alias, help="Only what became of this one.")
@with_session
def history(session: Session, adapter: str, alias: str | None) -> None:
    """Show what became of an adapter's aliases, the newest first: who, when and why."""
    with session.client() as client:
        events = client.history(_name(adapter), alias=alias)
    if session.as_json:
        session.emit(events)
        return
    render.table(
        ["when", "alias", "what", "version", "before", "gate", "who", "why"],
        [(e.time, e.alias, e.kind, _at(e.version), _at(e.previous), _gate(e), e.who, e.why) for e in events],
    )


@click.command("unalias", cls=Command, examples=["graft adapters unalias de-strings staging --yes"])
@click.argument("adapter", shell_complete=complete_adapter)
@click.argument("alias", shell_complete=complete_alias)
@_WHY
@click.option("--yes", is_flag=True, help="Don't ask.")
@with_session
def unalias(session: Session, adapter: str, alias: str, why: str, yes: bool) -> None:
    """Let ALIAS stand for nothing any more: who asks for it is answered that it does not exist."""
    name = _name(adapter)
    confirmed(f"Remove alias {name}@{alias}?", yes=yes)
    with session.client() as client:
        event = client.remove_alias(name, alias, why=why)
    _tell(session, event)


@click.command(
    "gc",
    cls=Command,
    examples=[
        "graft adapters gc --dry-run",
        "graft adapters gc --keep 2 --older-than 30 --yes",
        "graft adapters gc --adapter de-strings --keep 1",
    ],
)
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Newest versions of each adapter that stay.",
)
@click.option("--older-than", type=click.FloatRange(min=0), default=0, metavar="DAYS", help="Younger versions stay.")
@click.option("--adapter", shell_complete=complete_adapter, help="Only versions of this adapter.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@with_session
def gc(session: Session, keep: int, older_than: float, adapter: str | None, dry_run: bool, yes: bool) -> None:
    """Delete old versions that nothing needs, after showing which those are.

    What an alias stands for, what a rollback would go to, what is pinned or in a route, and what has requests in
    flight stays.
    """
    with session.client() as client:
        report = client.collect_garbage(keep=keep, older_than_days=older_than, adapter=adapter)
        if not dry_run and report.deleted:
            if not session.as_json:
                _show_gc(report)
            confirmed(f"Delete {len(report.deleted)} version(s)?", yes=yes)
        if not dry_run:
            report = client.collect_garbage(keep=keep, older_than_days=older_than, adapter=adapter, dry_run=False)
    if session.as_json:
        session.emit(report)
    else:
        _show_gc(report)


def _behind_gate(
    session: Session,
    client: Client,
    name: str,
    number: int,
    alias: str,
    data: tuple[Path, ...],
    *,
    min_delta: float,
    limit: int | None,
    why: str,
    in_place: int,
) -> AliasEvent:
    from graft_client.cli.uploads import total_bytes
    from graft_client.errors import ProtocolError

    task = client.adapter(name).task
    with byte_bar("uploading", total_bytes(data)) as tell:
        dataset = client.upload_dataset(data, task=task, progress=tell)
    total = 2 * min(dataset.rows, limit or dataset.rows)
    with count_bar(session, "measuring", total) as tell_done:
        for line in client.promote_behind_gate(
            name, number, alias, dataset=dataset.id, min_delta=min_delta, limit=limit, why=why, in_place=in_place
        ):
            tell_done(line.done, line.total)
            if line.event is not None:
                return line.event
    raise ProtocolError("the server ended the promotion before it was decided; see `graft adapters history`")


def _name(adapter: str) -> str:
    name, which = split_ref(adapter)
    if which is not None:
        raise click.BadParameter(f"name the adapter alone, `{name}`", param_hint="ADAPTER")
    return name


def _tell(session: Session, event: AliasEvent) -> None:
    if session.as_json:
        session.emit(event)
        return
    before = f" (before: {_at(event.previous)})" if event.previous is not None else ""
    after = f"is {event.adapter}{_at(event.version)}" if event.version is not None else "stands for nothing"
    click.echo(f"{event.adapter}@{event.alias} now {after}{before}")
    if (gate := _gate(event)) is not None:
        click.echo(gate)


def _at(number: int | None) -> str | None:
    return None if number is None else f"@{number}"


def _gate(event: AliasEvent) -> str | None:
    gate = event.gate
    if gate is None:
        return None
    return f"{gate.metric} {render.cell(gate.score)}, {render.cell(gate.score_in_place)} of {gate.against}"


def _show_gc(report: GcReport) -> None:
    verb = "would be deleted" if report.dry_run else "deleted"
    rows = [(v.ref, verb, v.kept_because, render.size(v.size_bytes), v.created_at) for v in report.deleted]
    rows += [(v.ref, "stays", v.kept_because, render.size(v.size_bytes), v.created_at) for v in report.kept]
    if rows:
        render.table(["version", "what", "why", "size", "published"], rows, right=("size",))
    orphans = f"; {report.orphans} folders that nothing names" if report.orphans else ""
    click.echo(f"{len(report.deleted)} version(s) {verb}, {render.size(report.freed_bytes)}{orphans}")
