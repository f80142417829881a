"""Random adapters for a load test: made on this machine, registered, and deleted when it is over."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from graft_client import Client
from graft_client.cli.adapter_files import adapter_files
from graft_client.cli.progress import count_bar
from graft_client.cli.server_extra import server_installed
from graft_client.cli.session import Session
from graft_client.errors import GraftError, ServerError, UsageError
from graft_client.schemas.adapters import AdapterInfo, VersionInfo
from graft_client.schemas.status import BaseModelStatus

if TYPE_CHECKING:
    from graft_server.bench.random_adapters import RandomLora

#: Takes any text, and needs no state of training.
_TASK = "chat"


@contextmanager
def random_adapters(
    session: Session, client: Client, count: int, *, rank: int, base_model: str | None, keep: bool
) -> Iterator[list[str]]:
    """The names of ``count`` registered LoRA adapters with random weights, ``bench-r16-0001`` and so on.

    Those that are there for this base model are used as they are. The others are made, and deleted at the end
    unless ``keep``. ``base_model`` names the base model as ``graft serve`` does, where its folder on the server is
    not on this machine.

    Raises:
        UsageError: the base model is not on this machine, or can't be adapted.
        GraftError: the server refuses an adapter.
    """
    base = client.status().base_model
    present = {adapter.name: adapter for adapter in client.adapters()}
    names = {f"bench-r{rank}-{number:04}": number for number in range(1, count + 1)}
    missing = [name for name in names if not _serves(present.get(name), base)]
    published: list[VersionInfo] = []
    try:
        if missing:
            maker = _maker(base, base_model, rank)
            with count_bar(session, "registering adapters", len(missing)) as tell:
                for name in missing:
                    published.append(_publish(client, maker, name, seed=names[name]))
                    tell(len(published), len(missing))
        yield list(names)
    finally:
        if not keep:
            _delete(session, client, published, present)


def _serves(adapter: AdapterInfo | None, base: BaseModelStatus) -> bool:
    """Whether an adapter's latest version was made for this base model; its name has the rank."""
    if adapter is None:
        return False
    latest = next(version for version in adapter.versions if version.version == adapter.latest)
    return latest.base_fingerprint == base.fingerprint


def _maker(base: BaseModelStatus, base_model: str | None, rank: int) -> RandomLora:
    spec = base_model or base.path
    if not base_model and not (spec and Path(spec).is_dir()):
        raise UsageError(
            f"random adapters need the shapes of {base.name}, whose files are not on this machine;"
            " give --base-model as for `graft serve`"
        )
    with server_installed():
        from graft_server.base_model import BaseModelError
        from graft_server.bench.random_adapters import RandomLora, locate
    try:
        return RandomLora(locate(str(spec)), rank=rank)
    except BaseModelError as error:
        raise UsageError(str(error)) from error


def _publish(client: Client, maker: RandomLora, name: str, *, seed: int) -> VersionInfo:
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as scratch:
        folder = Path(scratch) / name
        maker.write(folder, seed=seed)
        return client.register_adapter(adapter_files(folder), name=name, task=_TASK)


def _delete(session: Session, client: Client, published: list[VersionInfo], present: dict[str, AdapterInfo]) -> None:
    """Leaves the registry as it was. That it fails must not hide how the run itself ended."""
    for version in published:
        try:
            if version.adapter in present:
                client.delete_version(version.adapter, version.version)
            else:
                client.delete_adapter(version.adapter)
        except GraftError as error:
            session.note(f"{version.ref} was not deleted: {error}")
            if not isinstance(error, ServerError):  # nobody is there to be asked for the others
                return
