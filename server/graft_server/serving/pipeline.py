"""The part of a request's way that is a task's: request, prompt and decoding before the engine, parsing after it.

Tasks are plugins, so each call into one is guarded: what it refuses becomes a problem for the caller, and what it
breaks becomes a problem that names the plugin's file. Blocking: called in a thread.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from graft_client.schemas.common import FieldError
from graft_plugins.task import (
    AnyTask,
    Constraint,
    Generate,
    Generation,
    Message,
    Output,
    Prompt,
    RequestError,
    Sampling,
    Score,
)
from graft_server.problems import ProblemError
from graft_server.routing.resolver import Route

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the engine is asked for one request. ``request`` is ``None`` where the prompt is the caller's own;
    ``overrides`` are the fields of ``Sampling`` that the caller asked for."""

    route: Route
    request: BaseModel | None
    prompt: Prompt
    decoding: Generate | Score
    overrides: Mapping[str, Any] | None = None
    #: What the caller wants the answer to match.
    constraint: Constraint | None = None
    #: The engine tells the prompt's own tokens with the answer.
    echo: bool = False
    #: Where the request went when the route's version could not be loaded.
    rerouted: list[Route] = field(default_factory=list)

    @property
    def answering(self) -> Route:
        """Where the answer comes from, once it has begun."""
        return self.rerouted[-1] if self.rerouted else self.route


@dataclass(frozen=True, slots=True)
class Parsed:
    """A task's answer: as a document and as text."""

    output: dict[str, Any]
    text: str
    response: BaseModel | None = None


def plan_request(
    route: Route,
    *,
    document: dict[str, Any] | None = None,
    text: str | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan for a task's request, given as a document or as plain text.

    ``sampling`` replaces fields of the ``Sampling`` that the task asks for.

    Raises:
        ProblemError: ``invalid-request`` with the fields at fault, or ``plugin-fault``.
    """
    task = route.task
    with _guard(task, "reading the request"):
        if document is not None:
            request = task.request_model.model_validate(document)
        else:
            request = task.request_from_text(text or "")
    return plan_typed(route, request, sampling=sampling)


def plan_typed(
    route: Route,
    request: BaseModel,
    *,
    sampling: Mapping[str, Any] | None = None,
    constraint: Constraint | None = None,
) -> Plan:
    """The plan for a request that is already a model of its task.

    Raises:
        ProblemError: ``unservable``, the caller's constraint would break the task's own, or ``plugin-fault``.
    """
    with _guard(route.task, "building the prompt"):
        prompt = route.task.prompt(request, route.state)
        decoding = route.task.decoding(request, route.state)
    return Plan(route, request, prompt, _constrain(_override(decoding, sampling), constraint), sampling, constraint)


def replanned(plan: Plan, route: Route) -> Plan:
    """The same request for another adapter of its task, with the prompt and the decoding that its state asks for."""
    if plan.request is None:
        return replace(plan, route=route)
    other = plan_typed(route, plan.request, sampling=plan.overrides, constraint=plan.constraint)
    if isinstance(plan.decoding, Score) or isinstance(other.decoding, Score):
        return other
    # Of several answers to one request, each has a seed of its own.
    seeded = other.decoding.sampling.model_copy(update={"seed": plan.decoding.sampling.seed})
    return replace(other, decoding=other.decoding.model_copy(update={"sampling": seeded}))


def plan_messages(
    route: Route,
    messages: Sequence[Message],
    *,
    sampling: Mapping[str, Any] | None = None,
    constraint: Constraint | None = None,
    tools: Sequence[dict[str, Any]] = (),
    max_tokens: int,
) -> Plan:
    """The plan for a conversation: the task's request where it makes one of it, else the messages verbatim, with
    ``max_tokens`` for the answer unless the caller says.

    Raises:
        ProblemError: ``invalid-request``, ``plugin-fault``, or ``unservable``: a task that makes a request of its own
            of the conversation has no place for ``tools``, or see ``plan_typed``.
    """
    with _guard(route.task, "reading the conversation"):
        request = route.task.request_from_messages(messages)
    if request is None:
        prompt = Prompt(messages=tuple(messages), tools=tuple(tools))
        decoding = _override(Generate(sampling=Sampling(max_tokens=max_tokens), constraint=constraint), sampling)
        return Plan(route, None, prompt, decoding, sampling, constraint)
    if tools:
        raise ProblemError("unservable", f"task {route.task.name!r} of the adapter takes no tools; leave them out")
    return plan_typed(route, request, sampling=sampling, constraint=constraint)


def plan_verbatim(
    route: Route, prompt: Prompt, *, sampling: Mapping[str, Any] | None = None, echo: bool = False
) -> Plan:
    """The plan for a prompt that is the caller's own, without template or task."""
    return Plan(route, None, prompt, _override(Generate(), sampling), sampling, echo=echo)


def texts_in(document: Any) -> str:
    """All texts in a request's document, for a router that does not know its task."""
    match document:
        case str():
            return document
        case dict():
            return "\n".join(filter(None, map(texts_in, document.values())))
        case list():
            return "\n".join(filter(None, map(texts_in, document)))
        case _:
            return ""


def parse_output(plan: Plan, output: Output) -> Parsed:
    """The model's output as the task's response, or as it is where the caller brought the prompt.

    Raises:
        ProblemError: ``plugin-fault``.
    """
    if plan.request is None:
        if not isinstance(output, Generation):
            raise TypeError("a prompt without a task's request is only ever generated from")
        return Parsed({"text": output.text}, output.text)
    task = plan.route.task
    with _guard(task, "parsing the answer", serving=True):
        response = task.parse(plan.request, output, plan.route.state)
        return Parsed(response.model_dump(mode="json"), task.text_of(response), response)


def _override(decoding: Generate | Score, sampling: Mapping[str, Any] | None) -> Generate | Score:
    if not sampling or isinstance(decoding, Score):
        return decoding
    changed = decoding.sampling.model_copy(update=dict(sampling))
    return decoding.model_copy(update={"sampling": changed})


def _constrain(decoding: Generate | Score, constraint: Constraint | None) -> Generate | Score:
    if constraint is None:
        return decoding
    if isinstance(decoding, Score) or decoding.constraint is not None:
        detail = "the adapter's task decides itself what an answer looks like; leave the answer's format out"
        raise ProblemError("unservable", detail)
    return decoding.model_copy(update={"constraint": constraint})


@contextmanager
def _guard(task: AnyTask, doing: str, *, serving: bool = False) -> Iterator[None]:
    """Tell what a task refuses from what it breaks. While ``serving``, whatever it raises is its own fault."""
    try:
        yield
    except ProblemError:
        raise
    except RequestError as error:
        raise ProblemError("invalid-request", str(error)) from error
    except Exception as error:
        if isinstance(error, ValidationError) and not serving:
            errors = field_errors(error, "input")
            detail = f"the input is no request of task {task.name!r}: {errors[0].place}: {errors[0].message}"
            raise ProblemError("invalid-request", detail, errors=errors) from error
        place = _place(task, error)
        log.exception("task %s failed while %s (%s)", task.name, doing, place)
        raise ProblemError(
            "plugin-fault",
            f"task {task.name!r} failed while {doing}: {type(error).__name__} at {place}",
        ) from error


def field_errors(error: ValidationError, *root: str) -> list[FieldError]:
    """pydantic's errors with the dotted path of each field."""
    return [
        FieldError(place=".".join([*root, *map(str, item["loc"])]) or "body", message=item["msg"])
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def _place(task: AnyTask, error: BaseException) -> str:
    """``file:line`` where the task's own code was last on the stack, else the task's file."""
    file = inspect.getsourcefile(type(task))
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    module = type(task).__module__
    return f"{module} ({file}:{lines[-1]})" if lines else f"{module} ({file})"
