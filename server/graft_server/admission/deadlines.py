"""Waiting for something until a request's time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class DeadlineError(Exception):
    """A request's time was over. ``waiting`` tells whether it still waited for its turn."""

    def __init__(self, *, waiting: bool) -> None:
        super().__init__("the request's time is over")
        self.waiting = waiting


async def before(deadline: float | None, work: Awaitable[T], *, waiting: bool = False) -> T:
    """The result of ``work``, which is cancelled at ``deadline`` (by the event loop's clock; ``None`` is never).

    Raises:
        DeadlineError: it was not there in time.
    """
    try:
        async with asyncio.timeout_at(deadline) as timer:
            return await work
    except TimeoutError as error:
        if timer.expired():
            raise DeadlineError(waiting=waiting) from error
        raise
