"""How long a request may go on: until its key is revoked or expires, also in the middle of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import TypeVar

from graft_server.problems import ProblemError

T = TypeVar("T")


class Lease:
    """Ends the waits of one request when its key has ended. Used from one event loop only."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Task[object]] = set()
        self.ended: str | None = None

    def end(self, reason: str) -> None:
        """Interrupt whatever waits. ``reason`` is the sentence that the caller is told."""
        if self.ended is None:
            self.ended = reason
            for task in self._waiting:
                task.cancel()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for something, but no longer than the lease holds (as ``asyncio.timeout`` does it). Can be nested.

        Raises:
            ProblemError: ``unauthorized``, the lease has ended.
        """
        self._check()
        task = asyncio.current_task()
        assert task is not None
        outermost = task not in self._waiting
        self._waiting.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self.ended is not None and task.uncancel() == 0:
                self._check()
            raise
        finally:
            if outermost:
                self._waiting.discard(task)

    def _check(self) -> None:
        if self.ended is not None:
            raise ProblemError("unauthorized", self.ended)


async def guarded(items: AsyncGenerator[T], lease: Lease) -> AsyncGenerator[T]:
    """``items`` for as long as ``lease`` holds.

    Raises:
        ProblemError: ``unauthorized``, within the second in which the key ended.
    """
    async with aclosing(items):
        while True:
            with lease.held():
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
            yield item
