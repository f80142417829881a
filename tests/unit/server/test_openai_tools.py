"""Tools of chat completions, as the official OpenAI SDK sends them and reads the calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from graft_server.api.openai.tool_calls import ToolCallReader
from graft_server.engine.base import GenerateRequest, ToolSyntax
from graft_server.services import Services
from support.openai_sdk import Sdk, openai_sdk
from support.serving import engine_of, publish

HERMES = ToolSyntax("<tool_call>", "</tool_call>", "arguments")
BARE = ToolSyntax("", "", "parameters")
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Weather in Rome?"}]
CALL = '<tool_call>\n{"name": "Weather", "arguments": {"city": "Rome"}}\n</tool_call>'


class Weather(BaseModel):
    city: str


class Clock(BaseModel):
    zone: str


TOOLS: list[Any] = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Clock)]


@pytest.fixture
async def sdk(services: Services) -> AsyncIterator[Sdk]:
    """Of a server whose base model writes calls as Qwen's and Hermes' do."""
    engine = engine_of(services)
    engine.model = msgspec.structs.replace(engine.model, tool_syntax=HERMES)
    async with openai_sdk(services) as clients:
        yield clients


def last(services: Services) -> GenerateRequest:
    request = engine_of(services).requests[-1]
    assert isinstance(request, GenerateRequest)
    return request


async def test_a_call_is_read_from_the_answer(sdk: Sdk, services: Services) -> None:
    engine_of(services).answer = lambda _: f"Let me look.\n{CALL}"
    answer = await sdk.asynchronous.chat.completions.create(model="base", messages=ASK, tools=TOOLS)
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me look.")
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("Weather", {"city": "Rome"})
    assert [json.loads(tool)["function"]["name"] for tool in last(services).prompt.tools] == ["Weather", "Clock"]
    assert last(services).constraint is None
    parsed = await asyncio.to_thread(
        lambda: sdk.blocking.chat.completions.parse(model="base", messages=ASK, tools=TOOLS)
    )
    [parsed_call] = parsed.choices[0].message.tool_calls or []
    assert parsed_call.function.parsed_arguments == Weather(city="Rome")


async def test_a_conversation_goes_on_from_a_call(sdk: Sdk, services: Services) -> None:
    engine_of(services).answer = lambda _: CALL
    create = sdk.asynchronous.chat.completions.create
    first = await create(model="base", messages=ASK, tools=TOOLS)
    assert first.choices[0].message.content is None
    called: Any = first.choices[0].message.to_dict()
    identity = called["tool_calls"][0]["id"]
    engine_of(services).answer = lambda _: "It is sunny."
    result: Any = {"role": "tool", "tool_call_id": identity, "content": "sunny"}
    second = await create(model="base", messages=[*ASK, called, result], tools=TOOLS)
    assert second.choices[0].message.content == "It is sunny."
    assert (second.choices[0].finish_reason, second.choices[0].message.tool_calls) == ("stop", None)
    _, assistant, tool = last(services).prompt.messages
    assert [(call.id, call.name, json.loads(call.arguments)) for call in assistant.tool_calls] == [
        (identity, "Weather", {"city": "Rome"})
    ]
    assert (tool.role, tool.content, tool.tool_call_id) == ("tool", "sunny", identity)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "Clock"}}])
async def test_a_call_that_is_wanted_is_constrained(sdk: Sdk, services: Services, choice: Any) -> None:
    engine_of(services).answer = lambda _: '{"name": "Clock", "arguments": {"zone": "UTC"}}'
    answer = await sdk.asynchronous.chat.completions.create(model="base", messages=ASK, tools=TOOLS, tool_choice=choice)
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"zone": "UTC"}
    constraint = last(services).constraint
    assert constraint is not None
    schema = json.loads(constraint.json_schema)
    wanted = [each["properties"]["name"]["const"] for each in schema.get("anyOf", [schema])]
    assert wanted == (["Weather", "Clock"] if choice == "required" else ["Clock"])


async def test_calls_are_streamed(sdk: Sdk, services: Services) -> None:
    engine_of(services).answer = lambda _: f"Let me look. {CALL} {CALL}"
    async with sdk.asynchronous.chat.completions.stream(model="base", messages=ASK, tools=TOOLS) as stream:
        deltas = [event.delta async for event in stream if event.type == "content.delta"]
        final = await stream.get_final_completion()
    assert "".join(deltas) == "Let me look. "
    choice = final.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [call.function.parsed_arguments for call in choice.message.tool_calls or []] == [Weather(city="Rome")] * 2
    one = await sdk.asynchronous.chat.completions.create(
        model="base", messages=ASK, tools=TOOLS, parallel_tool_calls=False
    )
    assert len(one.choices[0].message.tool_calls or []) == 1


async def test_tools_that_may_not_be_called_are_not_shown(sdk: Sdk, services: Services) -> None:
    engine_of(services).answer = lambda _: CALL
    answer = await sdk.asynchronous.chat.completions.create(model="base", messages=ASK, tools=TOOLS, tool_choice="none")
    assert answer.choices[0].message.content == CALL
    assert last(services).prompt.tools == ()


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"tools": []}, "tools"),
        ({"tools": openai.omit, "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "Nobody"}}}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"model": "de"}, None),
    ],
)
async def test_what_contradicts_itself(
    sdk: Sdk, services: Services, tmp_path: Path, wrong: dict[str, Any], param: str | None
) -> None:
    publish(services, tmp_path, "de")
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.asynchronous.chat.completions.create(**{"model": "base", "messages": ASK, "tools": TOOLS, **wrong})
    assert (caught.value.type, caught.value.param) == ("invalid_request_error", param)


async def test_a_base_model_without_tools_refuses_them(services: Services) -> None:
    result: Any = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    async with openai_sdk(services) as sdk:
        for given_ in ({"messages": ASK, "tools": TOOLS}, {"messages": [*ASK, result]}):
            with pytest.raises(openai.BadRequestError, match="has no tools") as caught:
                await sdk.asynchronous.chat.completions.create(**{"model": "base", **given_})  # type: ignore[call-overload]
            assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tools")
        plain = await sdk.asynchronous.chat.completions.create(
            model="base", messages=ASK, tools=TOOLS, tool_choice="none"
        )
    assert plain.choices[0].message.content == "base: Weather in Rome?"


def read(syntax: ToolSyntax, text: str, cuts: list[int]) -> tuple[str, str, int]:
    """What is passed on, what is left at the end, and the number of calls, of a text that comes in pieces."""
    reader = ToolCallReader(syntax, {"Weather"}, forced=False, parallel=True)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    passed = "".join(reader.push(text[a:b]) for a, b in pairwise(places))
    rest, calls = reader.finish()
    return passed, rest, len(calls)


@given(st.sampled_from(["", "a < b", "see <tool", "{}", "1. x"]), st.integers(0, 2), st.lists(st.integers(0, 200)))
def test_calls_are_found_however_the_text_is_cut(text: str, calls: int, cuts: list[int]) -> None:
    passed, rest, found = read(HERMES, text + CALL * calls, cuts)
    assert found == calls
    assert passed + rest == text


@given(st.lists(st.integers(0, 200)))
def test_without_marks_a_call_is_the_whole_answer(cuts: list[int]) -> None:
    call = '{"name": "Weather", "parameters": {"city": "Rome"}}'
    assert read(BARE, f"{call} or so", cuts)[1:] == ("", 1)
    assert read(BARE, f" {call}", cuts)[2] == 1
    for text in (
        f"I think {call}",
        '{"name": "Nobody", "parameters": {}}',
        '{"name": ["Weather"], "parameters": {}}',
        '{"name": "Weather", "par',
        "[" * 100_000,
    ):
        passed, rest, found = read(BARE, text, cuts)
        assert (passed + rest, found) == (text, 0)
