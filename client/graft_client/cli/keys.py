"""``graft keys``: who may use the server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graft_client.cli import render
from graft_client.cli.completion import complete_adapter
from graft_client.cli.confirm import confirmed
from graft_client.cli.lazy import Group
from graft_client.cli.limits import shown, with_limits
from graft_client.cli.server_extra import server_installed
from graft_client.cli.session import Session, with_session

if TYPE_CHECKING:
    from graft_client.schemas.keys import KeyInfo, NewKey


@click.group(
    cls=Group,
    examples=[
        "graft keys create --data-dir graft-data --name me --scope admin",
        "graft keys create --name web --scope query --adapter 'de-*' --days 90",
        "graft keys list",
        "graft keys limit 3f9a01c2d4e5 --requests-per-minute 60",
        "graft keys revoke 3f9a01c2d4e5",
    ],
)
def keys() -> None:
    """Make, list, limit and revoke API keys."""


@keys.command(
    examples=[
        "graft keys create --data-dir graft-data --name me --scope admin",
        "graft keys create --name web --scope query --adapter 'de-*' --days 90",
        "graft keys create --name acme --scope query --scope train --tenant acme",
        "graft keys create --name trial --scope query --requests-per-minute 20 --tokens-per-day 100000",
    ]
)
@click.option("--name", required=True, help="For people to know it by.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["query", "train", "manage", "admin"]),
    multiple=True,
    required=True,
    help="What it may do; can be given again. admin may do everything.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    shell_complete=complete_adapter,
    help="The only adapters it sees, by name; * stands for anything. Can be given again.",
)
@click.option("--tenant", help="It sees the adapters whose names begin with this and a dot, and no others.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="It expires after so many days.")
@with_limits
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write it into this data folder instead of asking a server: for the first key, and where all are lost.",
)
@with_session
def create(session: Session, /, days: float | None, data_dir: Path | None, **fields: Any) -> None:
    """Make a key and print it, once: only its hash is kept.

    The first key must have the scope admin. From then on the server answers nobody without a key.
    """
    fields["expires_at"] = datetime.now(UTC) + timedelta(days=days) if days is not None else None
    made = _create_in(data_dir, **fields) if data_dir is not None else _create_at(session, **fields)
    if session.as_json:
        session.emit(made)
        return
    click.echo(made.key)
    session.note(f"key {made.id} ({', '.join(made.scopes)}); keep it, it can't be shown again")


@keys.command("list", examples=["graft keys list", "graft keys list --json"])
@with_session
def list_keys(session: Session) -> None:
    """List the keys, revoked and expired ones too; never their secrets."""
    with session.client() as client:
        found = client.keys()
    if session.as_json:
        session.emit(found)
        return
    render.table(
        ["id", "name", "scopes", "sees", "limits", "created", "state"],
        [(key.id, key.name, key.scopes, _sees(key), shown(key.limits), key.created_at, _state(key)) for key in found],
    )


@keys.command(
    examples=[
        "graft keys limit 3f9a01c2d4e5 --requests-per-minute 60 --tokens-per-minute 20000",
        "graft keys limit 3f9a01c2d4e5 --tokens-per-day default",
    ]
)
@click.argument("key_id")
@with_limits
@with_session
def limit(session: Session, key_id: str, limits: dict[str, int | None]) -> None:
    """Change how much a key may ask; more is answered 429 from then on, and what it has in flight goes on.

    Limits that are not given stay as they are. Several servers share them evenly.
    """
    if not limits:
        raise click.UsageError("give at least one of --requests-per-minute, --tokens-per-minute and --tokens-per-day")
    with session.client() as client:
        found = client.limit_key(key_id, **limits)
    if session.as_json:
        session.emit(found)
    else:
        click.echo(f"{found.id} ({found.name}): {shown(found.limits) or 'as the server is set'}")


@keys.command(examples=["graft keys revoke 3f9a01c2d4e5", "graft keys revoke 3f9a01c2d4e5 --yes"])
@click.argument("key_id")
@click.option("--yes", is_flag=True, help="Don't ask.")
@with_session
def revoke(session: Session, key_id: str, yes: bool) -> None:
    """End a key at once; what it has in flight ends within a second. The last one with the scope admin stays."""
    confirmed(f"Revoke key {key_id}?", yes=yes)
    with session.client() as client:
        found = client.revoke_key(key_id)
    if session.as_json:
        session.emit(found)
    else:
        click.echo(f"revoked {found.id} ({found.name})")


def _create_at(session: Session, **fields: Any) -> NewKey:
    with session.client() as client:
        return client.create_key(**fields)


def _create_in(data_dir: Path, **fields: Any) -> NewKey:
    with server_installed():
        from graft_server.access.local import create_key
    return create_key(data_dir, **fields)


def _sees(key: KeyInfo) -> str:
    names = [*key.adapters, *([f"{key.tenant}.*"] if key.tenant else [])]
    return ", ".join(names) or "everything"


def _state(key: KeyInfo) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "valid"
    expired = key.expires_at <= datetime.now(UTC)
    return "expired" if expired else f"valid until {render.cell(key.expires_at)}"
