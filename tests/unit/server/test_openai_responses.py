"""Responses, as the official OpenAI SDK asks for them, streams them, goes on from them and deletes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from graft_server.engine.base import GenerateRequest
from graft_server.services import Services
from support.openai_sdk import Sdk, openai_sdk
from support.serving import engine_of, publish


class Colour(BaseModel):
    name: str


@pytest.fixture
async def sdk(services: Services) -> AsyncIterator[Sdk]:
    async with openai_sdk(services) as clients:
        yield clients


def last(services: Services) -> GenerateRequest:
    request = engine_of(services).requests[-1]
    assert isinstance(request, GenerateRequest)
    return request


def asked(services: Services) -> list[tuple[str, str]]:
    """The messages of the last request."""
    return [(message.role, message.content) for message in last(services).prompt.messages]


async def test_a_text_is_answered_and_kept(sdk: Sdk, services: Services, tmp_path: Path) -> None:
    publish(services, tmp_path, "de")
    answer = await sdk.asynchronous.responses.create(model="de", input="hello you", metadata={"ticket": "7"})
    assert (answer.output_text, answer.status, answer.model) == ("de@1: hello you", "completed", "de@1")
    assert answer.id.startswith("resp_")
    assert (answer.error, answer.incomplete_details, answer.metadata) == (None, None, {"ticket": "7"})
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0
    kept = await sdk.asynchronous.responses.retrieve(answer.id)
    assert kept.to_dict() == answer.to_dict()
    blocking = await asyncio.to_thread(lambda: sdk.blocking.responses.create(model="base", input="hello"))
    assert blocking.output_text == "base: hello"


async def test_what_is_deleted_or_was_not_to_be_stored_is_gone(sdk: Sdk) -> None:
    client = sdk.asynchronous.responses
    kept = await client.create(model="base", input="a")
    passing = await client.create(model="base", input="b", store=False)
    assert passing.output_text == "base: b"
    await client.delete(kept.id)
    for identity in (kept.id, passing.id):
        with pytest.raises(openai.NotFoundError) as caught:
            await client.retrieve(identity)
        assert caught.value.code == "unknown_response"
        with pytest.raises(openai.BadRequestError, match="not found") as lost:
            await client.create(model="base", input="c", previous_response_id=identity)
        assert (lost.value.code, lost.value.param) == ("previous_response_not_found", "previous_response_id")
    with pytest.raises(openai.NotFoundError):
        await client.delete(kept.id)


async def test_a_conversation_goes_on_without_its_instructions(sdk: Sdk, services: Services) -> None:
    client = sdk.asynchronous.responses
    first = await client.create(model="base", input="one", instructions="Be brief.")
    assert asked(services) == [("system", "Be brief."), ("user", "one")]
    second = await client.create(model="base", input="two", previous_response_id=first.id)
    assert asked(services) == [("user", "one"), ("assistant", "base: one"), ("user", "two")]
    await client.delete(first.id)
    third = await client.create(model="base", input="three", previous_response_id=second.id)
    assert asked(services)[-2:] == [("assistant", "base: two"), ("user", "three")]
    assert third.previous_response_id == second.id


async def test_input_as_items_and_an_answers_own_items_again(sdk: Sdk, services: Services) -> None:
    client = sdk.asynchronous.responses
    first = await client.create(model="base", input="one")
    items: list[Any] = [{"role": "user", "content": "one"}]
    items += [item.to_dict() for item in first.output]
    items += [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "two"}]},
    ]
    await client.create(model="base", input=items)
    assert asked(services) == [
        ("user", "one"),
        ("assistant", "base: one"),
        ("system", "Be brief."),
        ("user", "two"),
    ]


async def test_what_a_response_was_asked_with_comes_in_pages(sdk: Sdk) -> None:
    client = sdk.asynchronous.responses
    first = await client.create(model="base", input="zero")
    asked_with: Any = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    answer = await client.create(model="base", input=asked_with, previous_response_id=first.id)
    for order, expected in (("asc", ["one", "two", "three"]), ("desc", ["three", "two", "one"])):
        items: list[Any] = [item async for item in client.input_items.list(answer.id, order=order, limit=2)]  # type: ignore[arg-type]
        assert [item.content[0].text for item in items] == expected
    assert {item.content[0].type for item in items} == {"input_text", "output_text"}
    with pytest.raises(openai.BadRequestError, match="no item"):
        await client.input_items.list(answer.id, after="msg_0")


async def test_the_events_of_a_stream(sdk: Sdk) -> None:
    stream = await sdk.asynchronous.responses.create(model="base", input="hello you", stream=True)
    events = [event async for event in stream]
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "base: hello you"
    whole = events[-1]
    assert whole.type == "response.completed"
    assert whole.response.output_text == "base: hello you"
    assert (await sdk.asynchronous.responses.retrieve(whole.response.id)).to_dict() == whole.response.to_dict()


async def test_the_helper_for_streams_puts_the_response_together(sdk: Sdk, services: Services) -> None:
    engine_of(services).answer = lambda _: '{"name": "dark red"}'
    async with sdk.asynchronous.responses.stream(model="base", input="colour?", text_format=Colour) as stream:
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert "".join(deltas) == '{"name": "dark red"}'
    assert final.output_parsed == Colour(name="dark red")

    def blocking() -> str:
        with sdk.blocking.responses.stream(model="base", input="colour?") as stream:
            return stream.until_done().get_final_response().output_text

    assert await asyncio.to_thread(blocking) == '{"name": "dark red"}'


async def test_a_class_is_parsed_from_the_answer(sdk: Sdk, services: Services) -> None:
    engine_of(services).answer = lambda _: '{"name": "red"}'
    answer = await sdk.asynchronous.responses.parse(model="base", input="colour?", text_format=Colour)
    assert answer.output_parsed == Colour(name="red")
    constraint = last(services).constraint
    assert constraint is not None
    assert list(json.loads(constraint.json_schema)["properties"]) == ["name"]
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_cut_off_is_incomplete(sdk: Sdk, stream: bool) -> None:
    given: dict[str, Any] = {"model": "base", "input": "one two three", "max_output_tokens": 2, "temperature": 0.5}
    if stream:
        events = [event async for event in await sdk.asynchronous.responses.create(**given, stream=True)]
        assert events[-1].type == "response.incomplete"
        answer = events[-1].response
    else:
        answer = await sdk.asynchronous.responses.create(**given)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert (answer.output_text, answer.max_output_tokens, answer.temperature) == ("base: one", 2, 0.5)


async def test_logprobs(sdk: Sdk) -> None:
    answer = await sdk.asynchronous.responses.create(
        model="base", input="hello", include=["message.output_text.logprobs"], top_logprobs=2
    )
    message = answer.output[0]
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    assert [(token.token, len(token.top_logprobs)) for token in part.logprobs or ()] == [("base:", 2), (" hello", 2)]


async def test_a_stream_that_breaks_ends_as_failed(sdk: Sdk, services: Services) -> None:
    engine = engine_of(services)
    engine.answer = lambda _: " ".join(["word"] * 100_000)
    stream = await sdk.asynchronous.responses.create(
        model="base", input="hello", stream=True, max_output_tokens=100_000
    )
    first = await anext(stream)
    engine.die()
    events = [first, *[event async for event in stream]]
    failed = events[-1]
    assert failed.type == "response.failed"
    assert failed.response.error is not None
    assert "the engine's process ended" in failed.response.error.message
    with pytest.raises(openai.NotFoundError):
        await sdk.asynchronous.responses.retrieve(failed.response.id)


async def test_another_tenants_responses_do_not_exist(services: Services, tmp_path: Path) -> None:
    publish(services, tmp_path, "anna.de")
    publish(services, tmp_path, "ben.de")
    services.registry.create_key("root", ["admin"])
    anna, ben = (services.registry.create_key(name, ["query"], tenant=name)[1] for name in ("anna", "ben"))
    async with openai_sdk(services, api_key=anna) as sdk:
        own = await sdk.asynchronous.responses.create(model="anna.de", input="secret")
        stream = await sdk.asynchronous.responses.create(model="anna.de", input="secret", stream=True)
        streamed = [event async for event in stream][-1]
        assert streamed.type == "response.completed"
    async with openai_sdk(services, api_key=ben) as sdk:
        for identity in (own.id, streamed.response.id):
            with pytest.raises(openai.NotFoundError):
                await sdk.asynchronous.responses.retrieve(identity)
            with pytest.raises(openai.NotFoundError):
                await sdk.asynchronous.responses.delete(identity)
            with pytest.raises(openai.BadRequestError):
                await sdk.asynchronous.responses.create(model="ben.de", input="x", previous_response_id=identity)
    async with openai_sdk(services, api_key=anna) as sdk:
        assert (await sdk.asynchronous.responses.retrieve(streamed.response.id)).output_text


@pytest.mark.parametrize(
    ("wrong", "code", "param"),
    [
        ({"foo": 1}, "unknown_parameter", "foo"),
        ({"text": {"foo": 1}}, "unknown_parameter", "text.foo"),
        ({"reasoning": {"effort": "low"}}, "unsupported_parameter", "reasoning"),
        ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "invalid_request", "input.0"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "invalid_request",
            "input.0.content.0",
        ),
        ({"max_output_tokens": 0}, "invalid_request", "max_output_tokens"),
    ],
)
async def test_what_is_refused(sdk: Sdk, wrong: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.asynchronous.responses.create(model="base", input="x", extra_body=wrong)
    assert (caught.value.type, caught.value.code, caught.value.param) == ("invalid_request_error", code, param)


async def test_an_unknown_model(sdk: Sdk) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.asynchronous.responses.create(model="nobody", input="x", stream=True)
    assert caught.value.code == "model_not_found"
