"""What an adapter's name on the command line stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from graft_client.errors import UsageError

if TYPE_CHECKING:
    from graft_client import Client

BASE = "base"


def task_of(client: Client, adapter: str, task: str | None) -> str:
    """The task that ``adapter`` serves; for the base model, the one that was named.

    Raises:
        NotFoundError: there is no such adapter.
        UsageError: the base model without a task.
    """
    if adapter == BASE:
        if task is None:
            raise UsageError("the base model serves every task; say which with --task")
        return task
    return client.adapter(adapter.partition("@")[0]).task


def split_ref(ref: str) -> tuple[str, int | str | None]:
    """``name``, ``name@N`` or ``name@alias`` as a name and a number, an alias or nothing."""
    name, at, which = ref.partition("@")
    if not at:
        return name, None
    if not which or not name:
        raise click.BadParameter(f"`{ref}` is not NAME, NAME@NUMBER or NAME@ALIAS", param_hint="ADAPTER")
    return name, int(which) if which.isdecimal() else which


def version_of(client: Client, ref: str) -> tuple[str, int]:
    """Name and number of the version that ``ref`` stands for now: without a number or an alias, the latest.

    Raises:
        NotFoundError: there is no such adapter, version or alias.
    """
    name, which = split_ref(ref)
    if which is None:
        return name, client.adapter(name).latest
    return name, client.version(name, which).version
