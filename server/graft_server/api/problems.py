"""Errors on the wire: RFC 9457 problem documents, and OpenAI's error objects under ``/v1``."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from graft_client.schemas.common import FieldError, Problem
from graft_client.schemas.openai import OpenAIError, OpenAIErrorBody
from graft_plugins.errors import UnknownNameError
from graft_server.engine.base import EngineError
from graft_server.observability import request_id
from graft_server.problems import ProblemError, as_problem
from graft_server.registry.errors import RegistryError
from graft_server.training.options import OptionError

log = logging.getLogger(__name__)

_STATUS_CODES = {404: "unknown-route", 405: "method-not-allowed", 413: "body-too-large"}

#: Our code -> OpenAI's, where it has one of its own.
_OPENAI_CODES = {
    "unknown-adapter": "model_not_found",
    "unknown-version": "model_not_found",
    "prompt-too-long": "context_length_exceeded",
    "unauthorized": "invalid_api_key",
    "overloaded": "rate_limit_exceeded",
    "rate-limited": "rate_limit_exceeded",
    "unknown-route": "unknown_url",
}


class BodyTooLargeError(HTTPException):
    """Raised while a body is read; an ``HTTPException`` because the framework lets no other pass from there."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the request body is larger than {limit // 2**20} MiB, which is the most taken here")


def problem_document(error: ProblemError) -> Problem:
    """The RFC 9457 document of an error."""
    return Problem(
        type=f"urn:graftwork:problem:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        code=error.code,
        nearest=error.nearest,
        errors=error.errors,
        request_id=request_id.get(),
    )


def openai_document(error: ProblemError) -> OpenAIError:
    """The same error as OpenAI's service would put it."""
    match openai_status(error):
        case 401:
            kind = "authentication_error"
        case 403:
            kind = "permission_error"
        case 429:
            kind = "rate_limit_error"
        case 504:
            kind = "timeout"
        case status if status >= 500:
            kind = "server_error"
        case _:
            kind = "invalid_request_error"
    code = _OPENAI_CODES.get(error.code, error.code.replace("-", "_"))
    param = error.param or (error.errors[0].place if error.errors else None)
    return OpenAIError(error=OpenAIErrorBody(message=error.detail, type=kind, param=param, code=code))


def openai_status(error: ProblemError) -> int:
    """OpenAI answers 400 where we tell 422."""
    return 400 if error.status in (409, 422) else error.status


def problem_response(error: ProblemError, *, openai: bool = False) -> Response:
    """The response for an error, in the shape of the API it happened in."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if openai:
        content = openai_document(error).model_dump(mode="json")
        return JSONResponse(content, openai_status(error), headers)
    content = problem_document(error).model_dump(mode="json", exclude_none=True)
    return JSONResponse(content, error.status, headers, media_type="application/problem+json")


def is_openai(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/")


def internal_problem(error: BaseException) -> ProblemError:
    """A fault of the server: logged with its traceback here, told without it."""
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return ProblemError(
        "internal",
        f"the server failed on this request; its log has the details under request id {request_id.get()}",
    )


def any_problem(error: BaseException) -> ProblemError:
    """The problem that any error stands for; one that nobody expected is logged."""
    return as_problem(error) or internal_problem(error)


def install(app: FastAPI) -> None:
    """Make the application answer every error as a problem."""
    expected = (ProblemError, RegistryError, UnknownNameError, EngineError, OptionError, OSError)
    for kind in expected:
        app.add_exception_handler(kind, _answering(any_problem))
    app.add_exception_handler(HTTPException, _answering(_from_http))
    app.add_exception_handler(RequestValidationError, _on_validation)


def _answering(
    translate: Callable[[Any], ProblemError],
) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handler(request: Request, error: Exception) -> Response:
        problem = translate(error)
        response = problem_response(problem, openai=is_openai(request.url.path))
        if isinstance(error, HTTPException) and error.headers:
            response.headers.update(error.headers)
        if problem.code == "unknown-route":
            problem.detail = f"there is no route {request.method} {request.url.path}"
            return problem_response(problem, openai=is_openai(request.url.path))
        return response

    return handler


def _from_http(error: HTTPException) -> ProblemError:
    # The framework hides what went wrong while it read a body behind a 400; a full disk should be told as such.
    cause = as_problem(error.__cause__) if error.__cause__ else None
    if cause is not None:
        return cause
    code = _STATUS_CODES.get(error.status_code)
    if code is None:
        code = "internal" if error.status_code >= 500 else "invalid-form"
    return ProblemError(code, str(error.detail))


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    openai = is_openai(request.url.path)
    items: Sequence[Any] = error.errors()
    if items and items[0]["type"] == "json_invalid":
        place = f"body:{items[0]['loc'][-1]}"
        reason = items[0].get("ctx", {}).get("error", "it can't be parsed")
        detail = f"the body is not JSON: {reason} at character {items[0]['loc'][-1]}"
        errors = [FieldError(place=place, message=detail)]
        return problem_response(ProblemError("invalid-json", detail, errors=errors), openai=openai)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip()
    wants_json = any(item["loc"] == ("body",) and item["type"] != "missing" for item in items)
    if wants_json and not (media_type == "application/json" or media_type.endswith("+json")):
        detail = f"send the body as JSON with `Content-Type: application/json`, not {media_type or 'without a type'}"
        return problem_response(ProblemError("unsupported-media-type", detail), openai=openai)
    return problem_response(validation_problem(items, openai=openai), openai=openai)


def validation_problem(items: Sequence[Any], *, openai: bool) -> ProblemError:
    """The problem of a document that is no request; ``items`` are pydantic's errors."""
    errors = [FieldError(place=_place(item["loc"]), message=_message(item)) for item in items]
    if openai and (refused := _refused_parameter(items)) is not None:
        return refused
    first = errors[0]
    detail = f"{first.place}: {first.message}"
    if len(errors) > 1:
        detail += f" (and {len(errors) - 1} more)"
    param = first.place if openai else None
    return ProblemError("invalid-request", detail, errors=errors, param=param)


def _refused_parameter(items: Sequence[Any]) -> ProblemError | None:
    """A parameter that OpenAI's service does not know, in its words, or one that only it can do something with."""
    for item in items:
        place = _place(item["loc"])
        match item["type"]:
            case "extra_forbidden":
                detail = f"Unrecognized request argument supplied: {place}"
                return ProblemError("unknown-parameter", detail, param=place)
            case "none_required":
                detail = f"Unsupported parameter: '{place}' is not supported with this model; leave it out"
                return ProblemError("unsupported-parameter", detail, param=place)
    return None


def _place(loc: Sequence[Any]) -> str:
    """The field's path without the part of the request it is in, which the route makes plain."""
    path = loc[1:] if len(loc) > 1 and loc[0] in ("body", "query", "path", "header") else loc
    return ".".join(map(str, path)).encode(errors="replace").decode()


def _message(item: Any) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
