"""What surrounds every request: an id, a log line and figures; the drain; the limit on the body. Plain ASGI, so that
streams and hang-ups pass through untouched."""

from __future__ import annotations

import logging
import time
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graft_server.api.problems import BodyTooLargeError, any_problem, is_openai, problem_response
from graft_server.lifecycle import Lifecycle
from graft_server.observability import Metrics, accept_request_id, request_id
from graft_server.problems import ProblemError

access_log = logging.getLogger("graft_server.access")

#: Any other is a label that a caller could make up.
_METHODS = frozenset({"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"})
_QUIET = ("/health/", "/metrics")


class RequestContext:
    """Gives a request its id, logs and counts it, and turns what nobody caught into a problem."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = request_id.set(accept_request_id(Headers(scope=scope).get("x-request-id")))
        started = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id.get() or ""
            await send(message)

        self._metrics.http_in_flight.inc()
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = status or 499
        except Exception as error:
            problem = any_problem(error)
            if status:
                # The status is sent already: an ended connection is all that can still be said.
                raise
            await problem_response(problem, openai=is_openai(scope["path"]))(scope, receive, send_with_id)
        finally:
            self._metrics.http_in_flight.dec()
            self._metrics.http_requests.labels(
                scope["method"] if scope["method"] in _METHODS else "other",
                _template(scope),
                f"{status // 100}xx",
            ).inc()
            if not scope["path"].startswith(_QUIET):
                access_log.info(
                    "%s %s %d",
                    scope["method"],
                    # Without the query, where some put their keys, and without line ends.
                    quote(scope["path"], safe="/:@"),
                    status,
                    extra={"seconds": round(time.monotonic() - started, 4)},
                )
            request_id.reset(token)


class Drain:
    """Counts requests in flight and refuses new ones once the server shuts down."""

    def __init__(self, app: ASGIApp, *, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_QUIET):
            await self._app(scope, receive, send)
            return
        if self._lifecycle.draining:
            error = ProblemError("draining", "the server is shutting down; send the request again soon", retry_after=5)
            response = problem_response(error, openai=is_openai(scope["path"]))
            response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        self._lifecycle.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._lifecycle.leave()


class BodyLimit:
    """Refuses files over ``limit`` bytes and other bodies over ``documents`` bytes, by their announced length or,
    without one, while they are read. Files go to the disk; a document is parsed at once, and nothing else is done
    meanwhile."""

    def __init__(self, app: ASGIApp, *, limit: int, documents: int) -> None:
        self._app = app
        self._limit = limit
        self._documents = documents

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "")
        limit = self._limit if _has_files(headers) else min(self._limit, self._documents)
        if announced.isdecimal() and int(announced) > limit:
            error = ProblemError("body-too-large", BodyTooLargeError(limit).detail)
            await problem_response(error, openai=is_openai(scope["path"]))(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise BodyTooLargeError(limit)
            return message

        await self._app(scope, limited, send)


def _has_files(headers: Headers) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"


def _template(scope: Scope) -> str:
    """The route's path with its parameters' names, so that the label has few values."""
    return getattr(scope.get("route"), "path", None) or "unmatched"
