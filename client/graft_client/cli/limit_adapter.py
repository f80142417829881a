"""``graft adapters limit``: how much an adapter may be asked."""

from __future__ import annotations

import click

from graft_client.cli.completion import complete_adapter
from graft_client.cli.lazy import Command
from graft_client.cli.limits import shown, with_limits
from graft_client.cli.session import Session, with_session


@click.command(
    "limit",
    cls=Command,
    examples=[
        "graft adapters limit de-strings --requests-per-minute 600 --tokens-per-minute 60000",
        "graft adapters limit de-strings --tokens-per-minute unlimited",
        "graft adapters limit de-strings",
    ],
)
@click.argument("adapter", shell_complete=complete_adapter)
@with_limits
@with_session
def limit(session: Session, adapter: str, limits: dict[str, int | None]) -> None:
    """Change how much an adapter may be asked by all keys together, in all its versions; without options, show it.

    More is answered 429 from then on. Limits that are not given stay as they are. Several servers share them evenly.
    """
    with session.client() as client:
        found = client.limit_adapter(adapter, **limits) if limits else client.adapter(adapter)
    if session.as_json:
        session.emit(found)
    else:
        click.echo(f"{found.name}: {shown(found.limits) or 'as the server is set'}")
