"""Tells plugins what happened, on a thread of its own: observers are foreign code that may be slow."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from graft_plugins.manager import PluginHost


class Observers:
    """Calls observation hooks in the order of events; nobody waits for them."""

    def __init__(self, host: PluginHost) -> None:
        self._host = host
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="observers")

    def tell(self, hook: str, payload: Mapping[str, Any]) -> None:
        """Queue one notification of ``job_finished``, ``version_published`` or ``request_served``."""
        # At the very end of a server's life nobody observes any more.
        with suppress(RuntimeError):
            self._thread.submit(self._host.notify, hook, payload)

    def close(self) -> None:
        """Wait until everything has been told."""
        self._thread.shutdown()
