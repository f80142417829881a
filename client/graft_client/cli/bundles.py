"""``graft adapters push`` and ``pull``: a version with its lineage from one server to another."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graft_client.cli import render
from graft_client.cli.completion import complete_adapter
from graft_client.cli.lazy import Command
from graft_client.cli.progress import byte_bar
from graft_client.cli.session import Session, with_session
from graft_client.cli.targets import version_of

if TYPE_CHECKING:
    from graft_client import Client
    from graft_client.schemas.adapters import VersionInfo


@click.command(
    "push",
    cls=Command,
    examples=[
        "graft adapters push de-strings@3 --to http://gpu-1:8000",
        "graft adapters push de-strings@production --to http://gpu-1:8000 --name de",
    ],
)
@click.argument("adapter", shell_complete=complete_adapter)
@click.option("--to", "other", required=True, metavar="URL", help="The server that gets it.")
@click.option("--name", help="Its name there.  [default: the same]")
@with_session
def push(session: Session, adapter: str, other: str, name: str | None) -> None:
    """Copy a version with its lineage to another server, which verifies every file's hash.

    There it is the next version of its adapter; aliases are not moved by it.
    """
    from graft_client import Client

    with session.client() as source, Client(other) as target:
        _copy(session, source, target, adapter, name)


@click.command(
    "pull",
    cls=Command,
    examples=["graft adapters pull de-strings@3 --from http://gpu-1:8000"],
)
@click.argument("adapter")
@click.option("--from", "other", required=True, metavar="URL", help="The server that has it.")
@click.option("--name", shell_complete=complete_adapter, help="Its name here.  [default: the same]")
@with_session
def pull(session: Session, adapter: str, other: str, name: str | None) -> None:
    """Copy a version with its lineage from another server to this one, which verifies every file's hash."""
    from graft_client import Client

    with Client(other) as source, session.client() as target:
        _copy(session, source, target, adapter, name)


def _copy(session: Session, source: Client, target: Client, adapter: str, name: str | None) -> None:
    from graft_client.errors import ProtocolError

    there, number = version_of(source, adapter)
    origin = source.version(there, number)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle.zip"
        with bundle.open("wb") as file, byte_bar("downloading", origin.size_bytes) as tell:
            for piece in source.download_bundle(origin.ref):
                file.write(piece)
                tell(len(piece))
        with byte_bar("uploading", bundle.stat().st_size) as tell:
            version: VersionInfo = target.import_bundle(bundle, name=name, progress=tell)
    if version.digest != origin.digest:
        raise ProtocolError(f"{target.url} has published {version.ref} with other files than {origin.ref}")
    if session.as_json:
        session.emit(version)
    else:
        size = render.size(version.size_bytes)
        click.echo(f"{origin.ref} of {source.url} is {version.ref} of {target.url} ({size}, {version.digest[:12]})")
