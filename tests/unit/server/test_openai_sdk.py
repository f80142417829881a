"""The official OpenAI SDK, unchanged but for its base URL, against the OpenAI-shaped routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from graft_server.engine.base import SamplingParams
from graft_server.services import Services
from support.openai_sdk import Sdk, openai_sdk
from support.serving import engine_of, make_services, publish

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello you"}]


@pytest.fixture
async def sdk(services: Services) -> AsyncIterator[Sdk]:
    async with openai_sdk(services) as clients:
        yield clients


def by_seed(services: Services) -> None:
    """Answers of as many words as the seed says, so that each choice is another one."""
    engine_of(services).answer = lambda request: " ".join(f"w{i}" for i in range(request.sampling.seed or 0))


async def test_the_blocking_client_chats_whole_and_streamed(sdk: Sdk, services: Services, tmp_path: Path) -> None:
    publish(services, tmp_path, "de", state={"target_language": "de"})

    def whole() -> tuple[str | None, str]:
        answer = sdk.blocking.chat.completions.create(model="de", messages=HELLO)
        return answer.choices[0].message.content, answer.model

    def streamed() -> str:
        stream = sdk.blocking.chat.completions.create(model="de", messages=HELLO, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert await asyncio.to_thread(whole) == ("de@1: hello you", "de@1")
    assert await asyncio.to_thread(streamed) == "de@1: hello you"


async def test_the_blocking_client_completes_whole_and_streamed(sdk: Sdk) -> None:
    def whole() -> str:
        return sdk.blocking.completions.create(model="base", prompt="Once upon").choices[0].text

    def streamed() -> str:
        stream = sdk.blocking.completions.create(model="base", prompt="Once upon", stream=True)
        return "".join(chunk.choices[0].text for chunk in stream)

    assert await asyncio.to_thread(whole) == "base: Once upon"
    assert await asyncio.to_thread(streamed) == "base: Once upon"


async def test_a_whole_chat(sdk: Sdk) -> None:
    answer = await sdk.asynchronous.chat.completions.create(model="base", messages=HELLO)
    assert (answer.object, answer.choices[0].finish_reason) == ("chat.completion", "stop")
    assert answer.choices[0].message.content == "base: hello you"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 3, 5)
    assert answer._request_id


async def test_a_streamed_chat_ends_with_its_usage(sdk: Sdk) -> None:
    stream = await sdk.asynchronous.chat.completions.create(
        model="base", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "base: hello you"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert not chunks[-1].choices
    assert [chunk.usage.total_tokens if chunk.usage else None for chunk in chunks[-2:]] == [None, 5]


async def test_the_helper_for_streams_puts_the_whole_answer_together(sdk: Sdk) -> None:
    async with sdk.asynchronous.chat.completions.stream(
        model="base", messages=HELLO, stream_options={"include_usage": True}, logprobs=True
    ) as stream:
        deltas = [event.delta async for event in stream if event.type == "content.delta"]
        final = await stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == "base: hello you"
    assert final.usage is not None
    assert final.usage.total_tokens == 5
    assert final.choices[0].logprobs is not None
    assert [token.token for token in final.choices[0].logprobs.content or ()] == ["base:", " hello", " you"]


async def test_a_stream_that_is_left_ends_in_the_engine(sdk: Sdk, services: Services) -> None:
    engine = engine_of(services)
    engine.answer = lambda _: " ".join(["word"] * 100_000)
    async with await sdk.asynchronous.chat.completions.create(
        model="base", messages=HELLO, stream=True, max_completion_tokens=100_000
    ) as stream:
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
    await engine.until(lambda engine: not engine.running)
    assert engine.aborted


async def test_n_answers_of_a_seed(sdk: Sdk, services: Services) -> None:
    by_seed(services)
    answer = await sdk.asynchronous.chat.completions.create(
        model="base", messages=HELLO, n=3, seed=2, max_completion_tokens=3
    )
    assert [choice.message.content for choice in answer.choices] == ["w0 w1", "w0 w1 w2", "w0 w1 w2"]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop", "length"]


async def test_logprobs(sdk: Sdk) -> None:
    answer = await sdk.asynchronous.chat.completions.create(model="base", messages=HELLO, logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content or []
    assert [(token.token, token.logprob) for token in tokens] == [("base:", -0.5), (" hello", -0.5), (" you", -0.5)]
    assert [top.logprob for top in tokens[0].top_logprobs] == [-1.0, -2.0]
    text = await sdk.asynchronous.completions.create(model="base", prompt="a b", logprobs=1)
    assert text.choices[0].logprobs is not None
    assert text.choices[0].logprobs.tokens == ["base:", " a", " b"]
    assert text.choices[0].logprobs.text_offset == [0, 5, 7]


async def test_the_parameters_of_decoding_reach_the_engine(sdk: Sdk, services: Services) -> None:
    shared: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["END", "\n"],
        "presence_penalty": -0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {"5": -100},
    }
    await sdk.asynchronous.chat.completions.create(model="base", messages=HELLO, max_completion_tokens=9, **shared)
    await sdk.asynchronous.completions.create(model="base", prompt="x", max_tokens=9, **shared)
    expected = SamplingParams(**{**shared, "max_tokens": 9, "stop": ("END", "\n"), "logit_bias": {5: -100.0}})
    assert [request.sampling for request in engine_of(services).requests] == [expected, expected]


async def test_a_list_of_prompts_gives_a_choice_each(sdk: Sdk) -> None:
    answer = await sdk.asynchronous.completions.create(model="base", prompt=["one", "two"])
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "base: one"), (1, "base: two")]
    stream = await sdk.asynchronous.completions.create(
        model="base", prompt=["one", "two"], stream=True, stream_options={"include_usage": True}
    )
    texts = {0: "", 1: ""}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "base: one", 1: "base: two"}
    assert chunk.usage is not None
    assert chunk.usage.total_tokens == 6


async def test_errors_are_the_sdks_own_and_name_the_request(sdk: Sdk) -> None:
    create = sdk.asynchronous.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="nobody") as missing:
        await create(model="nobody", messages=HELLO)
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id
    with pytest.raises(openai.BadRequestError) as bad:
        await create(model="base", messages=HELLO, temperature=9)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as long:
        await create(model="base", messages=[{"role": "user", "content": "word " * 1200}], stream=True)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as nowhere:
        await sdk.asynchronous.images.generate(model="base", prompt="a cat")
    assert nowhere.value.code == "unknown_url"


async def test_an_error_in_the_middle_of_a_stream_is_raised(sdk: Sdk, services: Services) -> None:
    engine = engine_of(services)
    engine.answer = lambda _: " ".join(["word"] * 100_000)
    stream = await sdk.asynchronous.chat.completions.create(
        model="base", messages=HELLO, stream=True, max_completion_tokens=100_000
    )
    await anext(stream)
    engine.die()
    with pytest.raises(openai.APIError, match="the engine's process ended") as caught:
        [chunk async for chunk in stream]
    assert caught.value.code == "engine_died"


async def test_a_key_that_the_server_does_not_know(services: Services) -> None:
    services.registry.create_key("root", ["admin"])
    async with openai_sdk(services, api_key="sk-nobody") as sdk:
        with pytest.raises(openai.AuthenticationError) as caught:
            await sdk.asynchronous.chat.completions.create(model="base", messages=HELLO)
    assert caught.value.code == "invalid_api_key"


async def test_a_full_queue_is_a_rate_limit(tmp_path: Path) -> None:
    services = make_services(tmp_path, max_sequences=1, max_queued=1)
    engine = engine_of(services)
    engine.hold()
    async with openai_sdk(services) as sdk:
        create = sdk.asynchronous.chat.completions.create
        first = asyncio.create_task(create(model="base", messages=HELLO))
        await engine.until(lambda engine: len(engine.running) == 1)
        second = asyncio.create_task(create(model="base", messages=HELLO))
        while not services.predictor.queued:
            await asyncio.sleep(0.01)
        with pytest.raises(openai.RateLimitError) as caught:
            await create(model="base", messages=HELLO)
        engine.release()
        await asyncio.gather(first, second)
    services.registry.close()
    assert caught.value.code == "rate_limit_exceeded"
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_the_sdk_tries_again_while_the_engine_starts(services: Services) -> None:
    engine = engine_of(services)
    engine.state = "starting"

    async def came_up(response: httpx.Response) -> None:
        engine.state = "ready"

    async with openai_sdk(services, max_retries=2) as sdk:
        sdk.asynchronous._client.event_hooks["response"].append(came_up)
        raw = await sdk.asynchronous.chat.completions.with_raw_response.create(model="base", messages=HELLO)
    assert raw.retries_taken == 1
    assert raw.parse().choices[0].message.content == "base: hello you"
