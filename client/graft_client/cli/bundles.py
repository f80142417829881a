"""``graft adapters push`` and ``pull``: a version with its lineage from one server to another."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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

_KEY_VARIABLE = "GRAFT_OTHER_API_KEY"
_KEY_HELP = "Your key there; others may see it here, the variable is safer."


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
@click.option("--to-key", "key", envvar=_KEY_VARIABLE, help=_KEY_HELP)
@click.option("--name", help="Its name there.  [default: the same]")
@with_session
def push(session: Session, adapter: str, other: str, key: str | None, name: str | None) -> None:
    """Copy a version with its lineage to another server, which verifies every file's hash.

    There it is the next version of its adapter; aliases are not moved by it.
    """
    with session.client() as source, _elsewhere(other, key) as target, _scratch() as bundle:
        origin = _download(source, adapter, bundle)
        with _hint("--to-key"):
            version = _upload(target, bundle, name, origin)
        _show(session, source, origin, target, version)


@click.command(
    "pull",
    cls=Command,
    examples=["graft adapters pull de-strings@3 --from http://gpu-1:8000"],
)
@click.argument("adapter")
@click.option("--from", "other", required=True, metavar="URL", help="The server that has it.")
@click.option("--from-key", "key", envvar=_KEY_VARIABLE, help=_KEY_HELP)
@click.option("--name", shell_complete=complete_adapter, help="Its name here.  [default: the same]")
@with_session
def pull(session: Session, adapter: str, other: str, key: str | None, name: str | None) -> None:
    """Copy a version with its lineage from another server to this one, which verifies every file's hash."""
    with _elsewhere(other, key) as source, session.client() as target, _scratch() as bundle:
        with _hint("--from-key"):
            origin = _download(source, adapter, bundle)
        version = _upload(target, bundle, name, origin)
        _show(session, source, origin, target, version)


def _elsewhere(url: str, key: str | None) -> Client:
    """A client of the other server. It gets a key of its own or none: the one for this server is not its business."""
    from graft_client import Client

    return Client(url, key=key or "")


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "bundle.zip"


@contextmanager
def _hint(option: str) -> Iterator[None]:
    """Where the other server wants a key, the error says how it is given."""
    from graft_client.errors import AccessError

    try:
        yield
    except AccessError as error:
        error.add_note(f"set {_KEY_VARIABLE}, or give {option}")
        raise


def _download(source: Client, adapter: str, bundle: Path) -> VersionInfo:
    from graft_client.cli.outputs import named

    there, number = version_of(source, adapter)
    origin = source.version(there, number)
    with named(bundle), bundle.open("wb") as file, byte_bar("downloading", origin.size_bytes) as tell:
        for piece in source.download_bundle(origin.ref):
            file.write(piece)
            tell(len(piece))
    return origin


def _upload(target: Client, bundle: Path, name: str | None, origin: VersionInfo) -> VersionInfo:
    """Sends what was downloaded, and returns the version that came of it.

    Raises:
        ProtocolError: that one has other files.
    """
    from graft_client.errors import ProtocolError

    with byte_bar("uploading", bundle.stat().st_size) as tell:
        version = target.import_bundle(bundle, name=name, progress=tell)
    if version.digest != origin.digest:
        raise ProtocolError(f"{target.url} has published {version.ref} with other files than {origin.ref}")
    return version


def _show(session: Session, source: Client, origin: VersionInfo, target: Client, version: VersionInfo) -> None:
    if session.as_json:
        session.emit(version)
    else:
        size = render.size(version.size_bytes)
        click.echo(f"{origin.ref} of {source.url} is {version.ref} of {target.url} ({size}, {version.digest[:12]})")
