"""Streams over HTTP: server-sent events, NDJSON, and ending the work when the caller hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Send

from graft_server.serving.predictor import Terms, in_time

T = TypeVar("T")

NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"


class StreamResponse(StreamingResponse):
    """Streams a generator and closes it however the response ends, so that nothing runs on for nobody."""

    def __init__(self, chunks: AsyncGenerator[str], *, media_type: str, headers: dict[str, str] | None = None) -> None:
        self._chunks = chunks
        head = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})}
        super().__init__(chunks, headers=head, media_type=media_type)

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._chunks):
            await super().stream_response(send)


async def until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``; cancels it when the caller hangs up.

    Raises:
        ClientDisconnect: there is nobody left to answer.
    """

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def plan_in_time(request: Request, terms: Terms, planning: Awaitable[T]) -> T:
    """What ``planning`` gives, unless the caller hangs up or the time of the request is over meanwhile.

    Raises:
        ClientDisconnect: there is nobody left to answer.
        ProblemError: ``deadline-exceeded``.
    """
    return await until_disconnect(request, in_time(terms, planning))


async def begin(request: Request, items: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """Wait for the first item, so that an error before it still gets its own status, then go on with all of them."""
    try:
        first = await until_disconnect(request, anext(items))
    except BaseException:
        await items.aclose()
        raise
    return _chained(first, items)


async def _chained(first: T, rest: AsyncGenerator[T]) -> AsyncGenerator[T]:
    async with aclosing(rest):
        yield first
        async for item in rest:
            yield item


def event(data: BaseModel | str, *, name: str | None = None, seq: int | None = None) -> str:
    """One server-sent event (WHATWG HTML, section 9.2)."""
    lines = []
    if seq is not None:
        lines.append(f"id: {seq}")
    if name is not None:
        lines.append(f"event: {name}")
    text = data if isinstance(data, str) else data.model_dump_json()
    lines.append(f"data: {text}")
    return "\n".join(lines) + "\n\n"


async def ndjson(documents: AsyncGenerator[BaseModel]) -> AsyncGenerator[str]:
    """One JSON document a line."""
    async with aclosing(documents):
        async for document in documents:
            yield document.model_dump_json(exclude_none=True) + "\n"
