"""The OpenAPI document, with what the framework does not see: the shape of errors, and answers that are streamed."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from graft_client.schemas.common import Problem
from graft_client.schemas.openai import OpenAIError
from graft_server.api.problems import is_openai
from graft_server.api.streaming import EVENTS

_REF = "#/components/schemas/{model}"


def install(app: FastAPI) -> None:
    """Make the application tell its errors as ``problems`` answers them, and its streams."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = completed(
                get_openapi(title=app.title, version=app.version, routes=app.routes, summary=app.summary)
            )
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with one response for all errors of each operation, in place of the framework's, and with events
    where a request can ask for them by ``stream``."""
    _, errors = models_json_schema([(Problem, "serialization"), (OpenAIError, "serialization")], ref_template=_REF)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas.update(errors["$defs"])
    for path, methods in document["paths"].items():
        shape = (
            _error("OpenAIError", "application/json")
            if is_openai(path)
            else _error("Problem", "application/problem+json")
        )
        for operation in methods.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = shape
            if _has_stream(operation, schemas):
                operation["responses"]["200"].setdefault("content", {})[EVENTS] = {}
    return document


def _has_stream(operation: dict[str, Any], schemas: dict[str, Any]) -> bool:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    model = schemas.get(body.get("$ref", "").rpartition("/")[2], {})
    return "stream" in {*model.get("properties", {}), *(each["name"] for each in operation.get("parameters", ()))}


def _error(model: str, media_type: str) -> dict[str, Any]:
    return {"description": "Error", "content": {media_type: {"schema": {"$ref": _REF.format(model=model)}}}}
