"""``graft status --watch``: live figures until Ctrl-C, on a screen of their own, as lines in a pipe, or as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import click

from graft_client import Client
from graft_client.cli import render
from graft_client.cli.failure import Failure
from graft_client.cli.outage import trouble
from graft_client.cli.session import Session, plain
from graft_client.errors import ConnectError, GraftError, ServerError
from graft_client.schemas.status import ServerStatus

#: Seconds that a server may keep silent before it counts as out of reach.
_TIMEOUT = 5.0
#: Adapters named in a line at most.
_MOST_NAMED = 4


@dataclass(frozen=True)
class Look:
    """What one look at the server found: its status, or why there is none."""

    status: ServerStatus | None = None
    error: GraftError | None = None


def watch(session: Session, interval: float) -> None:
    """Looks at the server every ``interval`` seconds until Ctrl-C. One that goes away is asked until it is back.

    Raises:
        GraftError: what answers is no graftwork server, or the URL can't be right.
    """
    with suppress(KeyboardInterrupt), session.client(timeout=_TIMEOUT, retries=0) as client:
        looks = _looks(client, interval)
        if session.as_json:
            _print_json(looks)
        elif sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            _show(looks, client.url)
        else:
            _print_lines(looks, client.url)


def line(status: ServerStatus) -> str:
    """The figures in one line; of the adapters, the busiest ones that do something."""
    engine = status.engine
    parts = [
        "ready" if status.ready else engine.state,
        f"{engine.tokens_per_second:.0f} tok/s",
        f"{status.admitted_requests} running",
        f"{status.queued_requests} waiting",
        f"KV {engine.kv_blocks_used}/{engine.kv_blocks_total}",
        f"slots {len(engine.loaded_adapters)}/{engine.slots}",
    ]
    busy = [row for row in status.traffic if row.running or row.waiting or row.tokens_per_second]
    parts += [f"{row.ref} {row.running}+{row.waiting} {row.tokens_per_second:.0f} tok/s" for row in busy[:_MOST_NAMED]]
    if len(busy) > _MOST_NAMED:
        parts.append(f"{len(busy) - _MOST_NAMED} more")
    return render.printable("  ".join(parts))


def _looks(client: Client, interval: float) -> Iterator[Look]:
    while True:
        begun = time.monotonic()
        try:
            look = Look(status=client.status())
        except (ConnectError, ServerError) as error:
            look = Look(error=error)
        yield look
        time.sleep(max(0.0, begun + interval - time.monotonic()))


def _print_json(looks: Iterator[Look]) -> None:
    for look in looks:
        if look.status is not None:
            click.echo(json.dumps(plain(look.status), ensure_ascii=False))
        elif look.error is not None:
            Failure(look.error, as_json=True).show()


def _print_lines(looks: Iterator[Look], url: str) -> None:
    for look in looks:
        clock = time.strftime("%H:%M:%S")
        if look.status is not None:
            click.echo(f"{clock}  {line(look.status)}")
        elif look.error is not None:
            click.echo(f"{clock}  {trouble(look.error, url)}", err=True)


def _show(looks: Iterator[Look], url: str) -> None:
    from rich.console import Console
    from rich.live import Live

    from graft_client.cli.dashboard import Dashboard

    dashboard = Dashboard(url)
    with Live(dashboard, console=Console(), screen=True):
        for look in looks:
            if look.status is not None:
                dashboard.update(look.status)
            elif look.error is not None:
                dashboard.lost(trouble(look.error, url))
