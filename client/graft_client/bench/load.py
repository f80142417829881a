"""The two ways to put load on a server. They know nothing of HTTP: ``ask`` sends a request and comes back when it is
over, saying whether it went well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator

from graft_client.bench.workload import Planned

Ask = Callable[[Planned, float], Awaitable[bool]]
"""Sends a request that is due at a time, in seconds since the run began."""

Clock = Callable[[], float]

#: Else a server that refuses at once would be asked in a busy loop.
_AFTER_A_FAILURE = 0.1


async def closed_loop(
    ask: Ask, requests: Iterable[Planned], *, concurrency: int, seconds: float | None, clock: Clock
) -> None:
    """``concurrency`` clients that each send their next request when the last one was answered.

    The server sets the pace: it is never asked for more than it can do, so a closed loop finds its throughput at a
    number of users, and says nothing about queues. Sending ends after ``seconds``, or with the requests; those in
    flight are answered.
    """
    pending = iter(requests)

    async def client() -> None:
        for planned in pending:
            now = clock()
            if seconds is not None and now >= seconds:
                return
            if not await ask(planned, now):
                await asyncio.sleep(_AFTER_A_FAILURE)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(client())


async def open_loop(
    ask: Ask, requests: Iterable[Planned], *, arrivals: Iterator[float], seconds: float | None, clock: Clock
) -> None:
    """Requests that are sent when they arrive, however many are unanswered: what people do to a server.

    Where they arrive faster than they are answered, queues grow for as long as the run lasts. Sending ends as in
    ``closed_loop``.
    """
    async with asyncio.TaskGroup() as group:
        for planned, due in zip(requests, arrivals, strict=False):
            if seconds is not None and due >= seconds:
                return
            await asyncio.sleep(due - clock())
            group.create_task(_whole(ask, planned, due))


async def _whole(ask: Ask, planned: Planned, due: float) -> None:
    await ask(planned, due)
