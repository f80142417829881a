"""The OpenAPI document. Every operation tells in which shape it answers errors: the framework would guess another."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from graft_client.schemas.common import Problem
from graft_client.schemas.openai import OpenAIError
from graft_server.api.problems import is_openai

_REF = "#/components/schemas/{model}"


def install(app: FastAPI) -> None:
    """Make the application tell its errors as ``problems`` answers them."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = with_errors(
                get_openapi(title=app.title, version=app.version, routes=app.routes, summary=app.summary)
            )
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def with_errors(document: dict[str, Any]) -> dict[str, Any]:
    """The document with one response for all errors of each operation, in place of the framework's."""
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
    return document


def _error(model: str, media_type: str) -> dict[str, Any]:
    return {"description": "Error", "content": {media_type: {"schema": {"$ref": _REF.format(model=model)}}}}
