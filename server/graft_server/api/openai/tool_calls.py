"""Functions that the model may call: what constrains a call that is wanted, and the calls in an answer's text."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Sequence
from typing import Any

from graft_client.schemas.openai import ChatCompletionRequest
from graft_client.schemas.openai_tools import FunctionCall, NamedToolChoice, Tool, ToolCallItem
from graft_plugins.task import Constraint, JsonSchema
from graft_server.engine.base import ToolSyntax
from graft_server.problems import ProblemError


def concerns_tools(body: ChatCompletionRequest) -> bool:
    """Whether tools may be called, or were."""
    may_call = bool(body.tools) and body.tool_choice != "none"
    return may_call or any(message.role == "tool" or message.tool_calls for message in body.messages)


def callable_tools(body: ChatCompletionRequest, syntax: ToolSyntax | None) -> list[Tool]:
    """The tools that the answer may call.

    Raises:
        ProblemError: the base model knows no tools, or what is asked for contradicts itself.
    """
    tools = [] if body.tool_choice == "none" else body.tools or []
    if syntax is None and concerns_tools(body):
        detail = "`tools`: the base model's chat template has no tools that this server can read; leave them out"
        raise ProblemError("unsupported-parameter", detail, param="tools")
    match body.tool_choice:
        case NamedToolChoice(function=function):
            if not any(tool.function.name == function.name for tool in tools):
                detail = f"`tool_choice` names {function.name!r}, which is none of `tools`"
                raise ProblemError("invalid-request", detail, param="tool_choice")
        case "required" if not tools:
            raise ProblemError("invalid-request", "`tool_choice` needs `tools`", param="tool_choice")
    if tools and body.response_format is not None and body.response_format.type != "text":
        detail = "`response_format` can't be kept while tools may be called; leave one of them out"
        raise ProblemError("invalid-request", detail, param="response_format")
    return tools


def call_constraint(body: ChatCompletionRequest, tools: Sequence[Tool], syntax: ToolSyntax | None) -> Constraint | None:
    """What makes the answer a call, where ``tool_choice`` wants one: the JSON object alone, without its marks."""
    if syntax is None or not tools or body.tool_choice in (None, "auto"):
        return None
    named = body.tool_choice.function.name if isinstance(body.tool_choice, NamedToolChoice) else None
    wanted = [tool.function for tool in tools if named in (None, tool.function.name)]
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": each.name}, syntax.arguments: each.parameters or {"type": "object"}},
            "required": ["name", syntax.arguments],
            "additionalProperties": False,
        }
        for each in wanted
    ]
    return JsonSchema(json_schema=calls[0] if len(calls) == 1 else {"anyOf": calls})


class ToolCallReader:
    """Reads one answer as it comes. Text in front of the first call is passed on; what may be a call is held back."""

    def __init__(self, syntax: ToolSyntax, names: Collection[str], *, forced: bool, parallel: bool) -> None:
        # A call that was forced has no marks.
        self._opening = "" if forced else syntax.opening
        self._closing = "" if forced else syntax.closing
        self._arguments = syntax.arguments
        self._names = names
        self._parallel = parallel
        self._held = ""
        self._passed = False

    def push(self, text: str) -> str:
        """More of the answer; returns what is certainly no call."""
        self._held += text
        if self._opening:
            at = self._held.find(self._opening)
            free = at if at >= 0 else len(self._held) - _overlap(self._held, self._opening)
        else:
            # Without marks a call is the whole answer.
            start = self._held.lstrip()
            free = len(self._held) if self._passed or (start and not start.startswith("{")) else 0
        passed, self._held = self._held[:free], self._held[free:]
        self._passed = self._passed or bool(passed.strip())
        return passed

    def finish(self) -> tuple[str, list[ToolCallItem]]:
        """The rest of the text, and the calls. What was held back and is no call is text; what stands behind a call
        and is none is nothing."""
        calls: list[ToolCallItem] = []
        at = 0
        while self._held[at:].strip():
            read = self._call(at)
            if read is None:
                return (self._held, []) if not calls else ("", calls)
            call, at = read
            calls.append(call)
        return "", calls if self._parallel else calls[:1]

    def _call(self, at: int) -> tuple[ToolCallItem, int] | None:
        start = self._skip(at, self._opening)
        if start is None:
            return None
        try:
            call, end = json.JSONDecoder().raw_decode(self._held, start)
        except (ValueError, RecursionError):
            return None
        if not self._is_call(call):
            return None
        function = FunctionCall(name=call["name"], arguments=json.dumps(call[self._arguments], ensure_ascii=False))
        # The mark behind the last call is missing where the model's end came in its place.
        after = self._skip(end, self._closing)
        return ToolCallItem(id=f"call_{secrets.token_hex(12)}", function=function), end if after is None else after

    def _is_call(self, call: Any) -> bool:
        if not isinstance(call, dict) or not isinstance(call.get(self._arguments), dict):
            return False
        return isinstance(call.get("name"), str) and call["name"] in self._names

    def _skip(self, at: int, mark: str) -> int | None:
        """The place behind a mark and the white space around it; ``None`` if it is not there."""
        rest = self._held[at:].lstrip()
        if not rest.startswith(mark):
            return None
        return len(self._held) - len(rest[len(mark) :].lstrip())


def _overlap(text: str, mark: str) -> int:
    """How much of the text's end may be the beginning of the mark."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
