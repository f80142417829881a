"""The OpenAI-shaped routes: documents, streams, errors, and which adapter answered."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_server.engine.base import EngineDiedError, SamplingParams
from graft_server.services import Services
from support.scripted_engine import FINGERPRINT
from support.serving import engine_of, on_socket, publish, sse

HELLO = [{"role": "user", "content": "hello you"}]


async def chat(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={"messages": HELLO, **body})


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    data = [event["data"] for event in sse(response.text)]
    assert data[-1] == "[DONE]"
    return [json.loads(chunk) for chunk in data[:-1]]


async def test_models_are_the_base_and_every_adapter(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de")
    publish(services, tmp_path, "de")
    models = (await client.get("/v1/models")).json()
    assert models["object"] == "list"
    assert [(model["id"], model["parent"], model["root"]) for model in models["data"]] == [
        ("tiny", None, "tiny"),
        ("de", "tiny", "de@2"),
        ("de@1", "tiny", "de@1"),
        ("de@2", "tiny", "de@2"),
    ]
    assert (await client.get("/v1/models/de@1")).json()["root"] == "de@1"
    assert (await client.get("/v1/models/base")).json()["id"] == "base"
    response = await client.get("/v1/models/dee")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "'de'" in response.json()["error"]["message"]


async def test_a_chat_with_the_base_model_takes_the_messages_as_they_are(
    client: httpx.AsyncClient, services: Services
) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hello "}, {"type": "text", "text": "you"}]},
    ]
    response = await chat(client, model="tiny", messages=messages)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "base"
    assert answer["system_fingerprint"] == f"fp_{FINGERPRINT[:12]}"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "base: hello you", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
    sent = engine_of(services).requests[0].prompt.messages
    assert [(message.role, message.content) for message in sent] == [("system", "Be brief."), ("user", "hello you")]


async def test_a_chat_with_an_adapter_goes_through_its_task(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de", state={"target_language": "de"})
    response = await chat(client, model="de")
    assert response.headers["x-graft-adapter"] == "de@1"
    assert response.json()["model"] == "de@1"
    assert response.json()["choices"][0]["message"]["content"] == "de@1: hello you"
    assert engine_of(services).requests[0].prompt.messages[0].content == "Translate to German."


async def test_a_streamed_chat_has_openais_chunks(client: httpx.AsyncClient) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    parts = chunks(await chat(client, model="base", **options))
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert len({part["id"] for part in parts}) == 1
    deltas = [part["choices"][0]["delta"] for part in parts[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "base: hello you"
    assert parts[-2]["choices"][0]["finish_reason"] == "stop"
    assert parts[-2]["choices"][0]["delta"] == {}
    assert all(part["usage"] is None for part in parts[:-1])
    assert (parts[-1]["choices"], parts[-1]["usage"]["total_tokens"]) == ([], 5)


async def test_without_include_usage_no_chunk_has_usage(client: httpx.AsyncClient) -> None:
    assert all("usage" not in part for part in chunks(await chat(client, model="base", stream=True)))


async def test_a_scored_answer_streams_as_one_chunk(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    catalogue = services.host.task("recommendation")
    examples = [catalogue.parse_row({"history": ["Heat", "Alien", "Up"]})]
    publish(services, tmp_path, "films", "recommendation", state=catalogue.fit_state(examples).model_dump())
    messages = [{"role": "user", "content": "Heat"}]
    parts = chunks(await chat(client, model="films", messages=messages, stream=True))
    contents = [part["choices"][0]["delta"].get("content") for part in parts]
    assert len([content for content in contents if content]) == 1


async def test_logprobs(client: httpx.AsyncClient) -> None:
    response = await chat(client, model="base", logprobs=True, top_logprobs=2)
    tokens = response.json()["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in tokens] == ["base:", " hello", " you"]
    assert tokens[0]["bytes"] == list(b"base:")
    assert [token["logprob"] for token in tokens[0]["top_logprobs"]] == [-1.0, -2.0]
    body = {"model": "base", "prompt": "a b", "logprobs": 1}
    logprobs = (await client.post("/v1/completions", json=body)).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["base:", " a", " b"]
    assert logprobs["text_offset"] == [0, 5, 7]
    assert logprobs["top_logprobs"][0] == {"base:0": -1.0}


async def test_a_completion_continues_the_text_verbatim(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de")
    response = await client.post("/v1/completions", json={"model": "de", "prompt": "Once upon"})
    answer = response.json()
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == "de@1: Once upon"
    request = engine_of(services).requests[0]
    assert (request.prompt.text, request.prompt.messages) == ("Once upon", ())
    assert request.sampling.max_tokens == 16


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_ignore_eos_reaches_the_engine(client: httpx.AsyncClient, services: Services, path: str) -> None:
    prompt = {"prompt": "hello"} if path == "/v1/completions" else {"messages": HELLO}
    for given in ({"ignore_eos": True}, {"ignore_eos": False}, {}):
        response = await client.post(path, json={"model": "base", **prompt, **given})
        assert response.status_code == 200, response.text
    sent = [request.sampling.ignore_eos for request in engine_of(services).requests]
    assert sent == [True, False, False]


async def test_several_prompts_give_a_choice_each(client: httpx.AsyncClient) -> None:
    body = {"model": "base", "prompt": ["one", "two"]}
    answer = (await client.post("/v1/completions", json=body)).json()
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "base: one"),
        (1, "base: two"),
    ]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
    parts = chunks(await client.post("/v1/completions", json={**body, "stream": True}))
    texts = {0: "", 1: ""}
    for part in parts:
        texts[part["choices"][0]["index"]] += part["choices"][0]["text"]
    assert texts == {0: "base: one", 1: "base: two"}


def by_seed(services: Services) -> None:
    """Answers of as many words as the seed says, so that each choice is another one."""
    engine_of(services).answer = lambda request: " ".join(f"w{i}" for i in range(request.sampling.seed or 0))


async def test_n_answers_to_a_conversation_have_seeds_of_their_own(
    client: httpx.AsyncClient, services: Services
) -> None:
    by_seed(services)
    response = await chat(client, model="base", n=3, seed=2, max_tokens=3, logprobs=True)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in answer["choices"]] == [
        (0, "w0 w1", "stop"),
        (1, "w0 w1 w2", "stop"),
        (2, "w0 w1 w2", "length"),
    ]
    assert [len(c["logprobs"]["content"]) for c in answer["choices"]] == [2, 3, 3]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}
    assert [request.sampling.seed for request in engine_of(services).requests] == [2, 3, 4]


async def test_n_answers_without_a_seed_draw_on_their_own(client: httpx.AsyncClient, services: Services) -> None:
    answer = (await chat(client, model="base", n=2, temperature=1)).json()
    assert len(answer["choices"]) == 2
    assert [request.sampling.seed for request in engine_of(services).requests] == [None, None]


async def test_a_scored_answer_can_be_asked_for_n_times(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    catalogue = services.host.task("recommendation")
    examples = [catalogue.parse_row({"history": ["Heat", "Alien", "Up"]})]
    publish(services, tmp_path, "films", "recommendation", state=catalogue.fit_state(examples).model_dump())
    messages = [{"role": "user", "content": "Heat"}]
    answer = (await chat(client, model="films", messages=messages, n=2, seed=1)).json()
    first, second = (choice["message"]["content"] for choice in answer["choices"])
    assert first == second


async def test_streamed_choices_of_a_chat_interleave_by_index(client: httpx.AsyncClient, services: Services) -> None:
    by_seed(services)
    options = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True}
    parts = chunks(await chat(client, model="base", n=3, seed=4, **options))
    choices = [part["choices"][0] for part in parts[:-1]]
    order = [choice["index"] for choice in choices]
    assert order[:3] == [0, 1, 2]
    assert order != sorted(order)
    for index, words in enumerate((4, 5, 6)):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        texts = [choice["delta"].get("content", "") for choice in own]
        assert "".join(texts) == " ".join(f"w{i}" for i in range(words))
        assert [choice["finish_reason"] for choice in own] == [None] * (words + 1) + ["stop"]
        assert sum(len(choice["logprobs"]["content"]) for choice in own if choice["logprobs"]) == words
    assert parts[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 15, "total_tokens": 17}


async def test_n_answers_to_each_of_several_prompts(client: httpx.AsyncClient, services: Services) -> None:
    by_seed(services)
    body = {"model": "base", "prompt": ["a", "b c"], "n": 2, "seed": 1, "logprobs": 0}
    answer = (await client.post("/v1/completions", json=body)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == ["w0", "w0 w1"] * 2
    usage = {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    assert answer["usage"] == usage
    options = {"stream": True, "stream_options": {"include_usage": True}}
    parts = chunks(await client.post("/v1/completions", json={**body, **options}))
    offsets: dict[int, list[int]] = {}
    for part in parts[:-1]:
        choice = part["choices"][0]
        if choice["logprobs"]:
            offsets.setdefault(choice["index"], []).extend(choice["logprobs"]["text_offset"])
    assert offsets == {0: [0], 1: [0, 2], 2: [0], 3: [0, 2]}
    assert parts[-1]["usage"] == usage


@pytest.mark.parametrize("stream", [False, True])
async def test_the_failure_of_one_choice_ends_the_others(
    client: httpx.AsyncClient, services: Services, stream: bool
) -> None:
    def answer(request: Any) -> str:
        if request.sampling.seed == 3:
            raise EngineDiedError("the engine's process ended during the answer")
        return "word " * 1000

    engine_of(services).answer = answer
    response = await chat(client, model="base", n=2, seed=2, max_tokens=10_000, stream=stream)
    if stream:
        assert chunks(response)[-1]["error"]["code"] == "engine_died"
    else:
        assert (response.status_code, response.json()["error"]["code"]) == (502, "engine_died")
    await engine_of(services).until(lambda engine: not engine.running)
    assert engine_of(services).aborted


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_a_caller_that_hangs_up_ends_every_choice(services: Services, path: str, stream: bool) -> None:
    engine = engine_of(services)
    engine.hold()
    body: dict[str, Any] = {"model": "base", "n": 3, "stream": stream}
    body |= {"messages": HELLO} if path == "chat/completions" else {"prompt": "x"}
    async with on_socket(services) as (client, _):
        calling = asyncio.create_task(client.post(f"/v1/{path}", json=body))
        await engine.until(lambda engine: len(engine.running) == 3)
        calling.cancel()
        await engine.until(lambda engine: not engine.running)
    assert len(engine.aborted) == 3


async def test_a_caller_that_hangs_up_in_the_middle_of_a_stream_ends_every_choice(services: Services) -> None:
    engine = engine_of(services)
    engine.answer = lambda _: " ".join(["word"] * 100_000)
    body = {"model": "base", "messages": HELLO, "n": 3, "stream": True, "max_tokens": 100_000}
    async with on_socket(services) as (client, _):
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.aiter_lines()
            while "word" not in await anext(lines):
                pass
            assert len(engine.running) == 3
        await engine.until(lambda engine: not engine.running)
    assert len(engine.aborted) == 3


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_every_parameter_of_decoding_reaches_the_engine(
    client: httpx.AsyncClient, services: Services, path: str
) -> None:
    given = {
        "max_tokens": 9,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "seed": -3,
        "repetition_penalty": 1.2,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {"5": -100, "7": 2.5},
        "stop": "END",
        "stop_token_ids": [3, 4],
        "ignore_eos": True,
    }
    body = {"model": "base", **({"messages": HELLO} if path == "chat/completions" else {"prompt": "x"}), **given}
    response = await client.post(f"/v1/{path}", json=body)
    assert response.status_code == 200, response.text
    changed = {"logit_bias": {5: -100.0, 7: 2.5}, "stop": ("END",), "stop_token_ids": (3, 4)}
    assert engine_of(services).requests[0].sampling == SamplingParams(**{**given, **changed})


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        ("n", 0, "n"),
        ("n", 17, "n"),
        ("min_p", 1.5, "min_p"),
        ("repetition_penalty", 0, "repetition_penalty"),
        ("presence_penalty", 2.5, "presence_penalty"),
        ("frequency_penalty", -3, "frequency_penalty"),
        ("logit_bias", {"5": 101}, "logit_bias.5"),
        ("logit_bias", {"cat": 1}, "logit_bias.cat.[key]"),
        ("logit_bias", {"-1": 1}, "logit_bias.-1.[key]"),
        ("stop_token_ids", [-1], "stop_token_ids.0"),
        ("min_tokens", -1, "min_tokens"),
        ("min_tokens", 50, "min_tokens"),
        ("ignore_eos", "perhaps", "ignore_eos"),
        ("seed", 2**63, "seed"),
    ],
)
async def test_a_bad_value_is_told_by_its_parameter(
    client: httpx.AsyncClient, path: str, name: str, value: Any, param: str
) -> None:
    prompt = {"messages": HELLO} if path == "chat/completions" else {"prompt": "x"}
    response = await client.post(f"/v1/{path}", json={"model": "base", "max_tokens": 20, **prompt, name: value})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_request", param)


@pytest.mark.parametrize(
    ("body", "status", "kind", "code", "param"),
    [
        ({"model": "nobody"}, 404, "invalid_request_error", "model_not_found", None),
        ({"model": "base", "temperature": 9}, 400, "invalid_request_error", "invalid_request", "temperature"),
        ({"model": "base", "tools": []}, 400, "invalid_request_error", "invalid_request", "tools"),
        ({"model": "base", "messages": []}, 400, "invalid_request_error", "invalid_request", "messages"),
        ({"model": "base", "top_logprobs": 2}, 400, "invalid_request_error", "invalid_request", "top_logprobs"),
        (
            {"model": "base", "stream_options": {}},
            400,
            "invalid_request_error",
            "invalid_request",
            "stream_options",
        ),
        (
            {"model": "base", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "invalid_request_error",
            "invalid_request",
            "messages.0.content.0",
        ),
        (
            {"model": "base", "messages": [{"role": "user", "content": "word " * 1200}]},
            400,
            "invalid_request_error",
            "context_length_exceeded",
            None,
        ),
    ],
)
async def test_errors_have_openais_shape(
    client: httpx.AsyncClient, body: dict[str, Any], status: int, kind: str, code: str, param: str | None
) -> None:
    response = await chat(client, **body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == (kind, code, param)
    assert response.headers["x-request-id"]


async def test_a_streamed_request_that_fails_at_once_has_its_own_status(client: httpx.AsyncClient) -> None:
    body = {"model": "base", "prompt": "word " * 1200, "stream": True}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_an_engine_that_is_not_ready_is_a_server_error(client: httpx.AsyncClient, services: Services) -> None:
    engine_of(services).state = "starting"
    response = await chat(client, model="base")
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "server_error"
    assert response.headers["retry-after"]
