"""Shell completion: the scripts, and the names of adapters, tasks and jobs, asked of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from graft_client.cli.lazy import Command

if TYPE_CHECKING:
    from graft_client import Client
    from graft_client.schemas.adapters import AdapterInfo

PRODUCTION = "production"
_PATIENCE = 0.5


@click.command(
    cls=Command,
    examples=[
        'eval "$(graft completion bash)"                    # in ~/.bashrc',
        'eval "$(graft completion zsh)"                     # in ~/.zshrc',
        "graft completion fish > ~/.config/fish/completions/graft.fish",
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    Commands and options are completed, and the names of adapters, tasks, datasets and jobs where a server answers.
    """
    from click.shell_completion import get_completion_class

    from graft_client.cli import root

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root, {}, "graft", "_GRAFT_COMPLETE").source())


def complete_adapter(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Adapter names; after an ``@`` their aliases and versions."""
    name, at, _version = incomplete.partition("@")
    if at:
        return _ask(ctx, incomplete, lambda client: _refs(client.adapter(name)))
    return _ask(ctx, incomplete, lambda client: (adapter.name for adapter in client.adapters()))


def complete_alias(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The aliases of the adapter that was typed before, and the usual one."""
    name = str(ctx.params.get("adapter") or "").partition("@")[0]
    return _ask(ctx, incomplete, lambda client: sorted({PRODUCTION, *client.adapter(name).aliases}))


def complete_route(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Route names."""
    return _ask(ctx, incomplete, lambda client: (route.name for route in client.routes()))


def complete_task(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Task names."""
    return _ask(ctx, incomplete, lambda client: (task.name for task in client.tasks()))


def complete_method(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Method names."""
    return _ask(ctx, incomplete, lambda client: (method.name for method in client.training().methods))


def complete_dataset(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Dataset ids."""
    return _ask(ctx, incomplete, lambda client: (dataset.id for dataset in client.datasets()))


def complete_job(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Job ids."""
    return _ask(ctx, incomplete, lambda client: (job.id for job in client.jobs()))


def _refs(adapter: AdapterInfo) -> list[str]:
    aliases = [f"{adapter.name}@{alias}" for alias in adapter.aliases]
    return aliases + [version.ref for version in adapter.versions]


def _ask(ctx: click.Context, incomplete: str, names: Callable[[Client], Iterable[str]]) -> list[str]:
    """Names that begin as typed; none where the server is slow or away, for a person is waiting."""
    from graft_client import Client
    from graft_client.errors import GraftError

    try:
        with Client(ctx.params.get("url"), key=ctx.params.get("api_key"), timeout=_PATIENCE, retries=0) as client:
            return [name for name in names(client) if name.startswith(incomplete)]
    except GraftError:
        return []
