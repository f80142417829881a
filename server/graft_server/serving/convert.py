"""Between a task's words and the engine's: the two packages do not know each other."""

from __future__ import annotations

import json

from graft_plugins import task as tasks
from graft_server.engine import base as engine
from graft_server.registry.records import VersionRecord


def adapter_source(version: VersionRecord | None) -> engine.AdapterSource | None:
    """What a route leads to as the engine wants it; ``None`` stays the base model."""
    return None if version is None else version_source(version)


def version_source(version: VersionRecord) -> engine.AdapterSource:
    """A registered version as the engine wants it."""
    return engine.AdapterSource(
        ref=version.ref,
        engine_id=version.engine_id,
        path=str(version.path),
        method=version.lineage.method,
        rank=version.lineage.rank,
        digest=version.digest,
    )


def prompt_input(prompt: tasks.Prompt) -> engine.PromptInput:
    messages = tuple(_chat_message(message) for message in prompt.messages)
    tools = tuple(json.dumps(tool) for tool in prompt.tools)
    return engine.PromptInput(messages=messages, text=prompt.text, tokens=prompt.tokens, tools=tools)


def _chat_message(message: tasks.Message) -> engine.ChatMessage:
    calls = tuple(engine.ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls)
    return engine.ChatMessage(message.role, message.content, calls, message.tool_call_id)


def sampling_params(sampling: tasks.Sampling) -> engine.SamplingParams:
    return engine.SamplingParams(**sampling.model_dump())


def constraint_spec(constraint: tasks.Constraint | None) -> engine.ConstraintSpec | None:
    match constraint:
        case None:
            return None
        case tasks.Choices():
            return engine.ConstraintSpec(kind="choices", choices=constraint.choices)
        case tasks.Regex():
            return engine.ConstraintSpec(kind="regex", pattern=constraint.pattern)
        case tasks.JsonSchema():
            return engine.ConstraintSpec(kind="json_schema", json_schema=json.dumps(constraint.json_schema))
