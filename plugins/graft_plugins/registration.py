"""What the host checks when a plugin registers something: its type, its name and that it is complete."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from graft_plugins.method import AdapterMethod
from graft_plugins.reader import DatasetReader
from graft_plugins.router import Router
from graft_plugins.task import Task

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_TASK_MODELS = ("example_model", "request_model", "response_model", "state_model")


class RegistrationError(ValueError):
    """Something that a plugin tried to register and that the host refused, in one sentence."""


def check_task(task: Any) -> None:
    """Raises ``RegistrationError`` unless ``task`` is a complete ``Task``."""
    _check_common(task, Task, "task", texts=("title", "description"))
    for attribute in _TASK_MODELS:
        model = getattr(task, attribute, None)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise RegistrationError(f"task {task.name!r} needs a pydantic model as `{attribute}`")
        try:
            model.model_json_schema()
        except Exception as error:
            raise RegistrationError(
                f"task {task.name!r}: no JSON schema can be made of `{attribute}` ({model.__name__}): {error}"
            ) from error
    for attribute in ("field_aliases", "training_defaults", "example_request"):
        if not isinstance(getattr(task, attribute), Mapping):
            raise RegistrationError(f"task {task.name!r} needs a mapping as `{attribute}`")
    fields = task.example_model.model_fields
    for alias, field in task.field_aliases.items():
        if field not in fields:
            raise RegistrationError(
                f"task {task.name!r}: `field_aliases` maps {alias!r} to {field!r}, no field of the example"
            )


def check_reader(reader: Any) -> None:
    """Raises ``RegistrationError`` unless ``reader`` is a complete ``DatasetReader``."""
    _check_common(reader, DatasetReader, "reader", texts=("description",))
    if isinstance(reader.tasks, str) or not all(isinstance(task, str) for task in reader.tasks):
        raise RegistrationError(f"reader {reader.name!r} needs a set of task names as `tasks`")


def check_method(method: Any) -> None:
    """Raises ``RegistrationError`` unless ``method`` is a complete ``AdapterMethod``."""
    _check_common(method, AdapterMethod, "method", texts=("description",))
    model = getattr(method, "options_model", None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise RegistrationError(f"method {method.name!r} needs a pydantic model as `options_model`")


def check_router(router: Any) -> None:
    """Raises ``RegistrationError`` unless ``router`` is a complete ``Router``."""
    _check_common(router, Router, "router", texts=("description",))


def _check_common(thing: Any, base: type, kind: str, *, texts: tuple[str, ...]) -> None:
    if isinstance(thing, type):
        raise RegistrationError(f"register an instance, {thing.__name__}(), not the class")
    if not isinstance(thing, base):
        raise RegistrationError(f"a {kind} must be a {base.__name__}, not {type(thing).__name__}")
    name = getattr(thing, "name", None)
    if not isinstance(name, str):
        raise RegistrationError(f"{type(thing).__name__} needs a `name`")
    if not _NAME.fullmatch(name):
        raise RegistrationError(
            f"{kind} name {name!r} is invalid: use lower-case letters and digits, in words joined by hyphens"
        )
    for attribute in texts:
        text = getattr(thing, attribute, None)
        if not isinstance(text, str) or not text.strip():
            raise RegistrationError(f"{kind} {name!r} needs a text as `{attribute}`")
