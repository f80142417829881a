"""What an adapter's name on the command line stands for."""

from __future__ import annotations

from graft_client import Client
from graft_client.errors import UsageError

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
