"""Calls to the registry that outlast a database which is away for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import ParamSpec, TypeVar

from graft_server.registry.errors import UnavailableError

log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

#: Seconds between two tries: the first, and the most after doubling.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0


class Outlasting:
    """Calls, each again and again until the database or the artefact store answers, or until ``stopping``."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        #: When there was no answer last, by ``time.monotonic``.
        self.failed_at = float("-inf")

    async def __call__(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``call`` gives in a thread.

        Raises:
            UnavailableError: there is no answer and ``stopping`` is set.
        """
        return await self.until(partial(asyncio.to_thread, call, *args, **kwargs))

    async def until(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What ``attempt`` gives in the end.

        Raises:
            UnavailableError: there is no answer and ``stopping`` is set.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                return await attempt()
            except UnavailableError as error:
                self.failed_at = time.monotonic()
                if self._stopping.is_set():
                    raise
                log.warning("%s (next try in %g s)", error, pause)
            try:
                await asyncio.wait_for(self._stopping.wait(), pause)
            except TimeoutError:
                pause = min(2 * pause, _LONGEST_PAUSE)
