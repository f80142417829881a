"""``Client``: the calls of ``calls.py``, carried out one at a time by the thread that asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Concatenate, ParamSpec, Self, TypeVar

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


def _single(build: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    @documented_as(build)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(build(*args, **kwargs))

    return method


def _stream(build: Callable[P, StreamCall[T]]) -> Callable[Concatenate[Client, P], Iterator[T]]:
    @documented_as(build, "Iterator[{}]")
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self.stream(build(*args, **kwargs))

    return method


class Client:
    """A connection to one graftwork server. Threads may share it.

    ``url`` defaults to ``GRAFT_URL``, else to the local server's, and ``key`` to ``GRAFT_API_KEY``; an empty ``key`` is
    none at all. ``timeout`` is how many seconds the server may stay silent, ``retries`` how often a request that can
    safely be repeated is sent again when the server cannot be reached or answers that it is busy.

    Every method raises a ``GraftError``: ``ConnectError`` where no server answers, ``ServerError`` or its
    subclass for a problem that the server reports, ``UsageError`` for arguments that cannot be right.
    """

    def __init__(
        self, url: str | None = None, *, key: str | None = None, timeout: float = 600.0, retries: int = 3
    ) -> None:
        self.url = resolve_url(url)
        self._policy = RetryPolicy(retries)
        self._http = httpx.Client(**http_options(self.url, timeout, resolve_key(key)))

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    def send(self, call: Call[T]) -> T:
        """Carries out one call, again where that is safe and may help."""
        attempt = 0
        while True:
            try:
                return parse(self.url, call, self._exchange(call))
            except GraftError as error:
                self._pause(error, call, attempt)
            attempt += 1

    def stream(self, call: StreamCall[T]) -> Iterator[T]:
        """Carries out one streamed call. Closing the iterator hangs up, and the server stops its work."""
        attempt = 0
        while True:
            begun = False
            try:
                for item in self._pieces(call):
                    begun, attempt = True, 0
                    yield item
                    if call.resume is not None:
                        call = call.resume(item)
                return
            except GraftError as error:
                if begun and (call.resume is None or not isinstance(error, ConnectError)):
                    raise
                self._pause(error, call, attempt)
            attempt += 1

    def _pause(self, error: GraftError, call: Call[T] | StreamCall[T], attempt: int) -> None:
        delay = self._policy.delay(error, attempt) if may_repeat(error, call) else None
        if delay is None:
            raise error
        time.sleep(delay)

    def _exchange(self, call: Call[T]) -> httpx.Response:
        with ExitStack() as stack, translated(self.url):
            request = build_request(self._http, call, stack)
            response = self._http.send(request)
            raise_for_problem(response)
            return response

    def _pieces(self, call: StreamCall[T]) -> Iterator[T]:
        with ExitStack() as stack, translated(self.url):
            request = build_request(self._http, call, stack)
            response = self._http.send(request, stream=True)
            stack.callback(response.close)
            if not response.is_success:
                response.read()
                raise_for_problem(response)
            for frame in _frames(call, response):
                with understood(self.url, call):
                    item = call.parse(frame)
                yield item


def _frames(call: StreamCall[T], response: httpx.Response) -> Iterator[str | bytes]:
    if call.framing == "sse":
        for event in EventSource(response).iter_sse():
            if event.data:
                yield event.data
    elif call.framing == "bytes":
        yield from response.iter_bytes()
    else:
        lines = Lines()
        for chunk in response.iter_bytes():
            yield from lines.feed(chunk)
        yield from lines.flush()
