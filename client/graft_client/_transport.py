"""What both clients do the same way: the URL, the shape of requests, and turning failures into our errors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import httpx_sse
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from graft_client import __version__
from graft_client._call import Call, StreamCall
from graft_client._retry import parse_retry_after
from graft_client.errors import (
    AccessError,
    AnswerTimeoutError,
    BusyError,
    ConnectError,
    GraftError,
    InvalidError,
    NotFoundError,
    ProtocolError,
    ServerError,
    UsageError,
)
from graft_client.schemas.common import Problem
from graft_client.schemas.status import Health

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "GRAFT_API_KEY"

T = TypeVar("T")

_BY_STATUS: dict[int, type[ServerError]] = {
    401: AccessError,
    403: AccessError,
    404: NotFoundError,
    400: InvalidError,
    409: InvalidError,
    413: InvalidError,
    415: InvalidError,
    422: InvalidError,
    429: BusyError,
    503: BusyError,
}


def resolve_url(url: str | None) -> str:
    """The server's base URL: the argument, else ``GRAFT_URL``, else the local default.

    Raises:
        UsageError: it is no http or https URL.
    """
    chosen = (url or os.environ.get("GRAFT_URL") or "").strip() or DEFAULT_URL
    try:
        parts = urlsplit(chosen)
        host, _ = parts.hostname, parts.port
        # urlsplit drops what httpx refuses.
        httpx.URL(chosen)
    except (ValueError, httpx.InvalidURL) as error:
        raise UsageError(f"`{chosen}` is not a server URL: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"`{chosen}` is not a server URL; write it like {DEFAULT_URL}")
    if parts.username is not None or parts.password is not None:
        # Not shown: a URL is logged by everything that it passes.
        raise UsageError(f"the server's URL holds a password; leave it out, and set {KEY_VARIABLE} to your key")
    return chosen.rstrip("/")


def resolve_key(key: str | None) -> str | None:
    """The caller's key: the argument, else ``GRAFT_API_KEY``, else none. An empty argument stands for none at all.

    Raises:
        UsageError: it can't be sent.
    """
    chosen = (os.environ.get(KEY_VARIABLE, "") if key is None else key).strip()
    if not chosen.isascii() or not chosen.isprintable():
        raise UsageError(f"the key has characters that no key has; look at --api-key or {KEY_VARIABLE}")
    return chosen or None


def http_options(url: str, timeout: float, key: str | None = None) -> dict[str, Any]:
    """Arguments for ``httpx.Client`` and ``httpx.AsyncClient``."""
    authorization = {"Authorization": f"Bearer {key}"} if key else {}
    local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    return {
        "base_url": url,
        "timeout": httpx.Timeout(timeout, connect=min(timeout, 5.0)),
        "headers": {"User-Agent": f"graftwork/{__version__}", **authorization},
        # A proxy from the environment cannot reach this machine's own server.
        "trust_env": not local,
    }


def build_request(
    http: httpx.Client | httpx.AsyncClient, call: Call[Any] | StreamCall[Any], stack: ExitStack
) -> httpx.Request:
    """The request that ``call`` describes. Files of an upload stay open until ``stack`` closes.

    Raises:
        UsageError: a text in it can't be encoded.
    """
    with encodable():
        return http.build_request(**_request_arguments(call, stack))


@contextmanager
def encodable() -> Iterator[None]:
    """Refuses text that UTF-8 can't express. Python has it from bytes that are not UTF-8, in an argument for instance,
    and from escapes in JSON.

    Raises:
        UsageError: the body met such text.
    """
    try:
        yield
    except (UnicodeEncodeError, PydanticSerializationError) as error:
        if "surrogates" not in str(error):
            raise
        raise UsageError(
            "the request holds text that can't be sent: bytes that are not UTF-8, or half of a surrogate pair"
        ) from None


def _request_arguments(call: Call[Any] | StreamCall[Any], stack: ExitStack) -> dict[str, Any]:
    arguments: dict[str, Any] = {"method": call.method, "url": call.path, "params": dict(call.params)}
    if isinstance(call, StreamCall):
        arguments["headers"] = dict(call.headers)
    elif call.upload is not None:
        arguments["data"] = dict(call.upload.fields)
        arguments["files"] = call.upload.open(stack)
    if call.body is not None:
        arguments["content"] = call.body.model_dump_json(exclude_unset=True)
        arguments["headers"] = {"Content-Type": "application/json", **arguments.get("headers", {})}
    return arguments


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turns httpx's exceptions into ours."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ConnectError(
            f"no server answers at {url} ({_reason(error)}); start one with `graft serve --base-model ...`"
            " or give --url"
        ) from error
    except httpx.TimeoutException as error:
        raise AnswerTimeoutError(f"the server at {url} sent nothing for too long") from error
    except httpx_sse.SSEError as error:  # a TransportError, but nothing broke
        raise ProtocolError(f"{url} is no graftwork server: {error}") from error
    except httpx.TransportError as error:
        raise ConnectError(f"the connection to {url} broke: {_reason(error)}") from error
    except httpx.HTTPError as error:
        raise ProtocolError(f"{url}: {_reason(error)}") from error


def parse(url: str, call: Call[T], response: httpx.Response) -> T:
    """The document in a successful answer.

    Raises:
        ProtocolError: it is not the document that this route answers with.
    """
    with understood(url, call):
        return call.parse(response.text)


@contextmanager
def understood(url: str, call: Call[Any] | StreamCall[Any]) -> Iterator[None]:
    """Says which route's answer could not be read."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ProtocolError(
            f"{call.method} {url}{call.path} answered something that this client does not understand"
            f" ({place}: {first['msg']}); is it a graftwork server of this version?"
        ) from error


def raise_for_problem(response: httpx.Response) -> None:
    """Raises the error that the answer's status stands for; its body must have been read.

    Raises:
        ServerError: or its subclass for the status.
        ProtocolError: the answer redirects, which no route of ours does.
    """
    if response.is_success:
        return
    request = response.request
    if response.is_redirect:
        target = response.headers.get("location", "elsewhere")
        raise ProtocolError(f"{request.url} redirects to {target}; give that server's URL with --url")
    retry_after = parse_retry_after(response.headers.get("retry-after"))
    raise error_of(_problem_in(response), retry_after=retry_after)


def error_of(problem: Problem, *, retry_after: float | None = None) -> ServerError:
    """The error that a problem document stands for."""
    return _BY_STATUS.get(problem.status, ServerError)(problem, retry_after=retry_after)


def _problem_in(response: httpx.Response) -> Problem:
    """The problem document of an unsuccessful answer, or one in place of what was sent instead."""
    with suppress(ValidationError):
        return Problem.model_validate_json(response.content)
    request, status, title = response.request, response.status_code, response.reason_phrase or "error"
    with suppress(ValidationError):
        health = Health.model_validate_json(response.content)
        reason = health.detail or f"its engine is {health.status}"
        return Problem(title=title, status=status, detail=f"the server is not ready: {reason}", code="not-ready")
    detail = f"{request.method} {request.url} answered {status} {response.reason_phrase}"
    return Problem(title=title, status=status, detail=detail, code="http-error")


def may_repeat(error: GraftError, call: Call[Any] | StreamCall[Any]) -> bool:
    """Whether ``call`` may be sent again after ``error``: it does no harm, or it never reached the server."""
    return call.repeatable or isinstance(error.__cause__, httpx.ConnectError)


def _reason(error: Exception) -> str:
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
