"""What chat completions and completions can be asked for besides decoding, by the official OpenAI SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from graft_server.api.openai.shapes import characters, chat_logprobs, completion_logprobs
from graft_server.engine.base import ConstraintSpec, EchoedPrompt, GenerateRequest, TokenLogprob
from graft_server.services import Services
from support.openai_sdk import Sdk, openai_sdk
from support.serving import engine_of, in_memory, publish

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello you"}]


class Colour(BaseModel):
    name: str
    warm: bool


@pytest.fixture
async def sdk(services: Services) -> AsyncIterator[Sdk]:
    async with openai_sdk(services) as clients:
        yield clients


def constraint_of(services: Services) -> ConstraintSpec | None:
    """That of the last request."""
    request = engine_of(services).requests[-1]
    assert isinstance(request, GenerateRequest)
    return request.constraint


async def test_a_class_is_parsed_from_the_answer(sdk: Sdk, services: Services) -> None:
    engine_of(services).answer = lambda _: '{"name": "red", "warm": true}'
    answer = await sdk.asynchronous.chat.completions.parse(model="base", messages=HELLO, response_format=Colour)
    assert answer.choices[0].message.parsed == Colour(name="red", warm=True)
    constraint = constraint_of(services)
    assert constraint is not None
    schema = json.loads(constraint.json_schema)
    assert (constraint.kind, list(schema["properties"])) == ("json_schema", ["name", "warm"])
    assert schema["additionalProperties"] is False
    blocking = await asyncio.to_thread(
        lambda: sdk.blocking.chat.completions.parse(model="base", messages=HELLO, response_format=Colour)
    )
    assert blocking.choices[0].message.parsed == Colour(name="red", warm=True)


async def test_a_class_is_parsed_from_a_stream(sdk: Sdk, services: Services) -> None:
    engine_of(services).answer = lambda _: '{"name": "red", "warm": true}'
    async with sdk.asynchronous.chat.completions.stream(model="base", messages=HELLO, response_format=Colour) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == Colour(name="red", warm=True)


async def test_formats_of_an_answer(sdk: Sdk, services: Services, tmp_path: Path) -> None:
    publish(services, tmp_path, "de")
    create = sdk.asynchronous.chat.completions.create
    await create(model="base", messages=HELLO, response_format={"type": "json_object"})
    constraint = constraint_of(services)
    assert constraint is not None
    assert json.loads(constraint.json_schema) == {"type": "object"}
    await create(model="base", messages=HELLO, response_format={"type": "text"})
    assert constraint_of(services) is None
    await create(model="de", messages=HELLO, response_format={"type": "json_object"})
    assert constraint_of(services) == constraint


async def test_a_task_with_a_form_of_its_own_keeps_it(sdk: Sdk, services: Services, tmp_path: Path) -> None:
    catalogue = services.host.task("recommendation")
    examples = [catalogue.parse_row({"history": ["Heat", "Alien", "Up"]})]
    publish(services, tmp_path, "films", "recommendation", state=catalogue.fit_state(examples).model_dump())
    with pytest.raises(openai.BadRequestError, match="leave the answer's format out"):
        await sdk.asynchronous.chat.completions.create(
            model="films", messages=[{"role": "user", "content": "Heat"}], response_format={"type": "json_object"}
        )


async def test_notes_and_hints_change_nothing(sdk: Sdk, services: Services) -> None:
    answer = await sdk.asynchronous.chat.completions.create(
        model="base",
        messages=HELLO,
        store=True,
        metadata={"ticket": "7"},
        service_tier="auto",
        safety_identifier="u1",
        prompt_cache_key="k",
        modalities=["text"],
        extra_body={"reasoning_effort": None},
    )
    assert answer.choices[0].message.content == "base: hello you"


@pytest.mark.parametrize(
    ("wrong", "code", "param", "message"),
    [
        ({"foo": 1}, "unknown_parameter", "foo", "Unrecognized request argument supplied: foo"),
        ({"reasoning_effort": "low"}, "unsupported_parameter", "reasoning_effort", "not supported with this model"),
        ({"functions": []}, "unsupported_parameter", "functions", "not supported with this model"),
        ({"metadata": {"a" * 65: ""}}, "invalid_request", None, "at most 64"),
        ({"response_format": {"type": "xml"}}, "invalid_request", "response_format", "json_object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "invalid_request",
            "response_format.json_schema.json_schema.name",
            "pattern",
        ),
        ({"stream_options": {"include_usage": True}}, "invalid_request", "stream_options", "needs `stream`"),
        ({"top_logprobs": 2}, "invalid_request", "top_logprobs", "needs `logprobs`"),
        ({"stop": ["a"] * 5}, "invalid_request", "stop", "at most 4"),
        ({"n": 17}, "invalid_request", "n", "16"),
    ],
)
async def test_what_a_chat_is_refused_for(
    sdk: Sdk, wrong: dict[str, Any], code: str, param: str | None, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        await sdk.asynchronous.chat.completions.create(model="base", messages=HELLO, extra_body=wrong)
    assert (caught.value.type, caught.value.code) == ("invalid_request_error", code)
    if param is not None:
        assert caught.value.param == param


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        ([5, 6], ["5 6"]),
        ([[5, 6], [7]], ["5 6", "7"]),
    ],
)
async def test_the_forms_of_a_prompt(sdk: Sdk, services: Services, prompt: Any, texts: list[str]) -> None:
    answer = await sdk.asynchronous.completions.create(model="base", prompt=prompt)
    assert [choice.text for choice in answer.choices] == [f"base: {text}" for text in texts]


async def test_prompts_that_are_echoed(sdk: Sdk) -> None:
    ask: dict[str, Any] = {"model": "base", "prompt": ["one ", "two "], "echo": True, "n": 2}
    answer = await sdk.asynchronous.completions.create(**ask)
    expected = ["one base: one ", "one base: one ", "two base: two ", "two base: two "]
    assert [choice.text for choice in answer.choices] == expected
    streamed = [""] * 4
    async for chunk in await sdk.asynchronous.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == expected


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize(
    ("prompt", "words"),
    [("one two  three", ["one", " two", "  three"]), ([[5, 6, 7]], ["5", " 6", " 7"])],
)
async def test_the_likelihood_of_a_prompt(sdk: Sdk, prompt: Any, words: list[str], max_tokens: int) -> None:
    ask: dict[str, Any] = {"model": "base", "prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": max_tokens}
    answer = await sdk.asynchronous.completions.create(**ask)
    (choice,) = answer.choices
    assert answer.usage is not None
    assert choice.logprobs is not None
    generated = ["base:"][:max_tokens]
    assert choice.text == "".join([*words, *generated])
    assert (choice.finish_reason, answer.usage.completion_tokens) == ("length", max_tokens)
    assert choice.logprobs.tokens == [*words, *generated]
    assert choice.logprobs.token_logprobs == [None, -1.0, -2.0, *[-0.5][:max_tokens]]
    assert choice.logprobs.top_logprobs is not None
    assert choice.logprobs.text_offset is not None
    assert choice.logprobs.top_logprobs[:2] == [None, {f"{words[1]}0": -1.0, f"{words[1]}1": -2.0}]
    pieces = zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True)
    assert all(choice.text[at:].startswith(token) for token, at in pieces)

    text, told = "", []
    async for chunk in await sdk.asynchronous.completions.create(**ask, stream=True):
        text += chunk.choices[0].text
        if chunk.choices[0].logprobs is not None:
            told.append(chunk.choices[0].logprobs)
    assert text == choice.text
    assert [token for each in told for token in each.tokens or ()] == choice.logprobs.tokens
    assert [offset for each in told for offset in each.text_offset or ()] == choice.logprobs.text_offset


async def test_tokens_are_echoed_as_their_text(sdk: Sdk) -> None:
    ask: dict[str, Any] = {"model": "base", "prompt": [[5, 6], [7]], "echo": True}
    answer = await sdk.asynchronous.completions.create(**ask)
    assert [(choice.text, choice.logprobs) for choice in answer.choices] == [("5 6base: 5 6", None), ("7base: 7", None)]
    streamed = ["", ""]
    async for chunk in await sdk.asynchronous.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [choice.text for choice in answer.choices]


def test_offsets_of_parts_of_characters_and_of_marks() -> None:
    told = [TokenLogprob(piece, -1.0) for piece in (b"a", b"\xc3", b"\xa9", b"b")]
    logprobs = completion_logprobs(told, prompt=EchoedPrompt("<s>aéb", b"<s>", tuple(told)), echoed="aéb")
    assert logprobs["text_offset"] == [0, 0, 1, 1, 2, 3, 4, 4, 5]
    assert logprobs["tokens"][-4:] == ["a", "\ufffd", "\ufffd", "b"]


def test_a_character_that_is_told_in_two_pieces_stands_at_one_place() -> None:
    told = [TokenLogprob(piece, -1.0) for piece in (b"a", b"\xf0\x9f", b"\x98", b"\x80b")]
    whole = completion_logprobs(told)["text_offset"]
    split = [completion_logprobs(part, characters(before)) for part, before in ((told[:2], []), (told[2:], told[:2]))]
    assert [at for piece in split for at in piece["text_offset"]] == whole == [0, 1, 1, 1]


def test_the_bytes_of_tokens_are_those_of_the_text() -> None:
    told = [TokenLogprob(b"\xf0\x9f", -1.0, ((b"\xf0\x9f", -1.0),)), TokenLogprob(b"\x98\x80", -1.0)]
    content = chat_logprobs(told)["content"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == "😀"
    assert content[0]["token"] == content[0]["top_logprobs"][0]["token"] == "\ufffd"


@pytest.mark.parametrize(
    ("wrong", "param", "message"),
    [
        ({"suffix": "end"}, "suffix", "not supported with this model"),
        ({"best_of": 2}, "best_of", "not supported with this model"),
        ({"echo": True, "max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"prompt": []}, "prompt", "no text"),
        ({"prompt": [[]]}, "prompt", "no text"),
        ({"prompt": ["x"] * 100, "n": 6}, "prompt", "ask for 600 answers; 512 is the most"),
        ({"max_tokens": 1 << 64}, "max_tokens", "less than or equal to"),
        ({"extra_body": {"stop_token_ids": [1 << 64]}}, "stop_token_ids.0", "less than or equal to"),
    ],
)
async def test_what_a_completion_is_refused_for(sdk: Sdk, wrong: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        await sdk.asynchronous.completions.create(**{"model": "base", "prompt": "x", **wrong})
    assert (caught.value.type, caught.value.param) == ("invalid_request_error", param)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "\ud800"}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]}),
        ("chat/completions", {"messages": HELLO, "\ud800": 1}),
        ("chat/completions", {"messages": HELLO, "model": "\ud800"}),
        ("completions", {"prompt": "\ud800"}),
        ("embeddings", {"input": "\ud800"}),
        ("responses", {"input": "\ud800"}),
        ("responses", {"input": "a", "previous_response_id": "\ud800"}),
        ("responses", {"input": "a", "metadata": {"a": "\ud800"}}),
    ],
)
async def test_half_a_character_is_refused(services: Services, path: str, body: dict[str, Any]) -> None:
    async with in_memory(services) as client:
        content = json.dumps({"model": "base", **body})
        headers = {"content-type": "application/json"}
        answer = await client.post(f"/v1/{path}", content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
