"""``AsyncClient``: the calls of ``calls.py``, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import ExitStack, aclosing
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
from httpx_sse import EventSource

from graft_client import calls
from graft_client._call import Call, Lines, StreamCall
from graft_client._methods import documented_as
from graft_client._retry import RetryPolicy
from graft_client._transport import (
    build_request,
    http_options,
    may_repeat,
    parse,
    raise_for_problem,
    resolve_key,
    resolve_url,
    translated,
    understood,
)
from graft_client.errors import ConnectError, GraftError

T = TypeVar("T")
P = ParamSpec("P")


def _single(build: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    @documented_as(build)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.send(build(*args, **kwargs))

    return method


def _stream(
    build: Callable[P, StreamCall[T]],
) -> Callable[Concatenate[AsyncClient, P], AsyncGenerator[T, None]]:
    @documented_as(build, "AsyncGenerator[{}, None]")
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T, None]:
        return self.stream(build(*args, **kwargs))

    return method


class AsyncClient:
    """``Client`` for asyncio: the same methods, awaited, and streams that are read with ``async for``.

    Many tasks may share one client. See ``Client`` for the parameters and the errors raised.
    """

    def __init__(
        self, url: str | None = None, *, key: str | None = None, timeout: float = 600.0, retries: int = 3
    ) -> None:
        self.url = resolve_url(url)
        self._policy = RetryPolicy(retries)
        self._http = httpx.AsyncClient(**http_options(self.url, timeout, resolve_key(key)))

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    live = _single(calls.live)
    ready = _single(calls.ready)
    status = _single(calls.status)
    plugins = _single(calls.plugins)
    tasks = _single(calls.tasks)
    task = _single(calls.task)
    training = _single(calls.training)
    upload_dataset = _single(calls.upload_dataset)
    check_dataset = _single(calls.check_dataset)
    datasets = _single(calls.datasets)
    dataset = _single(calls.dataset)
    delete_dataset = _single(calls.delete_dataset)
    check_job = _single(calls.check_job)
    create_job = _single(calls.create_job)
    jobs = _single(calls.jobs)
    job = _single(calls.job)
    cancel_job = _single(calls.cancel_job)
    resume_job = _single(calls.resume_job)
    job_events = _stream(calls.job_events)
    adapters = _single(calls.adapters)
    adapter = _single(calls.adapter)
    version = _single(calls.version)
    register_adapter = _single(calls.register_adapter)
    pin_version = _single(calls.pin_version)
    unpin_version = _single(calls.unpin_version)
    promote = _single(calls.promote)
    promote_behind_gate = _stream(calls.promote_behind_gate)
    rollback = _single(calls.rollback)
    remove_alias = _single(calls.remove_alias)
    history = _single(calls.history)
    collect_garbage = _single(calls.collect_garbage)
    routes = _single(calls.routes)
    route = _single(calls.route)
    set_route = _single(calls.set_route)
    delete_route = _single(calls.delete_route)
    route_history = _single(calls.route_history)
    route_shadow = _single(calls.route_shadow)
    explain = _single(calls.explain)
    delete_adapter = _single(calls.delete_adapter)
    delete_version = _single(calls.delete_version)
    download_adapter = _stream(calls.download_adapter)
    merge_adapters = _single(calls.merge_adapters)
    download_merged = _stream(calls.download_merged)
    download_bundle = _stream(calls.download_bundle)
    import_bundle = _single(calls.import_bundle)
    predict = _single(calls.predict)
    predict_stream = _stream(calls.predict_stream)
    predict_bulk = _stream(calls.predict_bulk)
    evaluate = _stream(calls.evaluate)
    create_key = _single(calls.create_key)
    keys = _single(calls.keys)
    revoke_key = _single(calls.revoke_key)
    limit_key = _single(calls.limit_key)
    limit_adapter = _single(calls.limit_adapter)
    audit = _single(calls.audit)

    async def send(self, call: Call[T]) -> T:
        """Carries out one call, again where that is safe and may help."""
        attempt = 0
        while True:
            try:
                return parse(self.url, call, await self._exchange(call))
            except GraftError as error:
                await self._pause(error, call, attempt)
            attempt += 1

    async def stream(self, call: StreamCall[T]) -> AsyncGenerator[T, None]:
        """Carries out one streamed call. Closing the iterator hangs up, and the server stops its work."""
        attempt = 0
        while True:
            begun = False
            try:
                async with aclosing(self._pieces(call)) as pieces:
                    async for item in pieces:
                        begun, attempt = True, 0
                        yield item
                        if call.resume is not None:
                            call = call.resume(item)
                return
            except GraftError as error:
                if begun and (call.resume is None or not isinstance(error, ConnectError)):
                    raise
                await self._pause(error, call, attempt)
            attempt += 1

    async def _pause(self, error: GraftError, call: Call[T] | StreamCall[T], attempt: int) -> None:
        delay = self._policy.delay(error, attempt) if may_repeat(error, call) else None
        if delay is None:
            raise error
        await asyncio.sleep(delay)

    async def _exchange(self, call: Call[T]) -> httpx.Response:
        with ExitStack() as stack, translated(self.url):
            request = build_request(self._http, call, stack)
            response = await self._http.send(request)
            raise_for_problem(response)
            return response

    async def _pieces(self, call: StreamCall[T]) -> AsyncGenerator[T, None]:
        with ExitStack() as stack, translated(self.url):
            request = build_request(self._http, call, stack)
            response = await self._http.send(request, stream=True)
            try:
                if not response.is_success:
                    await response.aread()
                    raise_for_problem(response)
                async with aclosing(_frames(call, response)) as frames:
                    async for frame in frames:
                        with understood(self.url, call):
                            item = call.parse(frame)
                        yield item
            finally:
                await response.aclose()


async def _frames(call: StreamCall[T], response: httpx.Response) -> AsyncGenerator[str | bytes, None]:
    if call.framing == "sse":
        async with aclosing(EventSource(response).aiter_sse()) as events:
            async for event in events:
                if event.data:
                    yield event.data
    elif call.framing == "bytes":
        async for chunk in response.aiter_bytes():
            yield chunk
    else:
        lines = Lines()
        async for chunk in response.aiter_bytes():
            for line in lines.feed(chunk):
                yield line
        for line in lines.flush():
            yield line
