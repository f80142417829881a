"""The ``graft`` command. This module holds the root: which commands there are, and how errors end the process."""

from __future__ import annotations

from typing import Any

import click

from graft_client import __version__
from graft_client.cli.lazy import LazyGroup

_COMMANDS = {
    "serve": ("graft_client.cli.serve:serve", "Start a server with one base model."),
    "tasks": ("graft_client.cli.tasks:tasks", "The kinds of task that adapters are trained for."),
    "datasets": ("graft_client.cli.datasets:datasets", "Check, list and delete training data."),
    "train": ("graft_client.cli.train:train", "Train an adapter on files of examples."),
    "jobs": ("graft_client.cli.jobs:jobs", "Follow, cancel and resume training jobs."),
    "adapters": ("graft_client.cli.adapters:adapters", "List, register, promote, export, pin and delete adapters."),
    "routes": ("graft_client.cli.routes:routes", "Spread requests over versions, and see why they go where."),
    "query": ("graft_client.cli.query:query", "Ask an adapter once; the answer is streamed."),
    "predict": ("graft_client.cli.predict:predict", "Answer a file of requests; goes on where it stopped."),
    "evaluate": ("graft_client.cli.evaluate:evaluate", "Measure an adapter on a file of examples."),
    "bench": ("graft_client.cli.bench:bench", "Put load on a server and measure it."),
    "chat": ("graft_client.cli.chat:chat", "Talk with an adapter."),
    "plugins": ("graft_client.cli.plugins:plugins", "The plugins that the server has loaded."),
    "status": ("graft_client.cli.status:status", "Base model, engine, queues and jobs."),
    "keys": ("graft_client.cli.keys:keys", "Make, list, limit and revoke API keys."),
    "audit": ("graft_client.cli.audit:audit", "Who changed what, and when."),
    "completion": ("graft_client.cli.completion:completion", "Print a shell's completion script."),
}

INTERRUPTED = 130


class _Root(LazyGroup):
    """Ends with the exit code of the error, its text on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except Exception as error:
            as_json = bool(ctx.meta.get("graft.json"))
            if isinstance(error, click.ClickException) and not as_json:
                raise
            from graft_client.cli.failure import Failure

            failure = Failure.of(error, as_json=as_json)
            if failure is None:
                raise
            raise failure from error


@click.group(
    cls=_Root,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    examples=[
        "graft serve --base-model ./smollm2",
        "graft train translation --data strings.jsonl --name de-strings",
        'graft query de-strings "Turn off the lights"',
    ],
)
@click.version_option(__version__, prog_name="graft")
def root() -> None:
    """Train, register, route and query adapters on one base model."""


def main() -> None:
    """The entry point of the ``graft`` script."""
    root(prog_name="graft")
