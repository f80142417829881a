"""``graft status``: the server at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from graft_client.cli import render
from graft_client.cli.lazy import Command
from graft_client.cli.session import Session, with_session

if TYPE_CHECKING:
    from graft_client.schemas.status import PinnedVersion


@click.command(
    cls=Command,
    examples=["graft status", "graft status --json", "graft status --url http://gpu-1:8000", "graft status --watch"],
)
@click.option("--watch", "watched", is_flag=True, help="Show live figures until Ctrl-C; in a pipe, a line each time.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two looks, with --watch.",
)
@with_session
def status(session: Session, watched: bool, interval: float) -> None:
    """Show the server's base model, engine, queues and jobs. Exits with 6 where it is not ready.

    With --watch it goes on, whether the server is ready, away or back again; with --json too, each line is one
    JSON object.
    """
    if watched:
        from graft_client.cli.watch import watch

        watch(session, interval)
        return
    with session.client() as client:
        found = client.status()
        url = client.url
    if session.as_json:
        session.emit(found)
    else:
        base, engine = found.base_model, found.engine
        blocks = engine.kv_blocks_total
        jobs = [f"{count} {state}" for state, count in found.jobs.items() if count]
        render.fields(
            [
                ("server", f"{url} (graftwork {found.version}, up {render.duration(found.uptime_seconds)})"),
                ("name", found.name or None),
                ("ready", found.ready),
                ("base model", base.name),
                ("architecture", base.architecture),
                ("parameters", render.count(base.parameters) if base.parameters else None),
                ("context", f"{base.context_length:,} tokens" if base.context_length else None),
                ("engine", f"{engine.name} ({engine.state})"),
                ("engine error", engine.error),
                ("engine restarts", engine.restarts or None),
                ("device", " ".join(filter(None, (engine.device, engine.dtype))) or None),
                ("speed", f"{engine.tokens_per_second:.0f} tok/s, {engine.generated_tokens:,} tokens so far"),
                ("requests", f"{engine.running} running, {engine.waiting + found.queued_requests} waiting"),
                (
                    "KV cache",
                    f"{engine.kv_blocks_used} of {blocks} blocks, {engine.reused_tokens:,} prompt tokens reused"
                    if blocks
                    else None,
                ),
                ("slots", f"{len(engine.loaded_adapters)} of {engine.slots} in use"),
                ("loaded", engine.loaded_adapters or None),
                ("pinned", [_pin(version) for version in found.pinned] or None),
                ("adapters", f"{found.adapters} ({found.versions} versions)"),
                ("tasks", found.tasks),
                ("jobs", jobs or "none"),
                ("servers", f"{found.servers} of this registry" if found.servers > 1 else None),
                ("warning", found.warnings or None),
            ]
        )
    if not found.ready:
        raise click.exceptions.Exit(6)


def _pin(version: PinnedVersion) -> str:
    if version.loaded:
        return version.ref
    return f"{version.ref} (not loaded: {version.error})" if version.error else f"{version.ref} (not loaded)"
