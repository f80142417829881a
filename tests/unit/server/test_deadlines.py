"""Deadlines, hang-ups while waiting, and priorities, through the whole application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from graft_plugins.task import Generate, Message, Prompt, Sampling, Score
from graft_server.engine.base import GenerateRequest
from graft_server.routing.resolver import Route
from graft_server.services import Services
from graft_server.serving.cost import estimated_tokens
from graft_server.serving.pipeline import Plan
from support.serving import engine_of, in_memory, make_services, on_socket, sse
from support.waiting import until

NATIVE = {"adapter": "base", "text": "a b c"}
CHAT = {"model": "base", "messages": [{"role": "user", "content": "a b c"}]}


@pytest.fixture
async def narrow(tmp_path: Path) -> AsyncIterator[Services]:
    """Room for one request in the engine."""
    made = make_services(tmp_path, max_sequences=1)
    yield made
    made.registry.close()


async def test_a_request_whose_time_is_over_while_it_waits_leaves_the_queue(narrow: Services) -> None:
    engine = engine_of(narrow)
    engine.hold()
    async with in_memory(narrow) as client:
        first = asyncio.create_task(client.post("/api/predict", json=NATIVE))
        await engine.until(lambda engine: len(engine.running) == 1)
        late = await client.post("/api/predict", json={**NATIVE, "timeout": 0.05})
        assert (late.status_code, late.json()["code"]) == (504, "deadline-exceeded")
        assert "0.05 s were over before its turn came" in late.json()["detail"]
        assert narrow.predictor.queued == 0
        engine.release()
        assert (await first).status_code == 200
    assert len(engine.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_whose_time_is_over_in_the_engine_is_aborted(
    client: httpx.AsyncClient, services: Services, stream: bool
) -> None:
    engine = engine_of(services)
    engine.hold()
    late = await client.post("/api/predict", json={**NATIVE, "timeout": 0.05, "stream": stream})
    assert (late.status_code, late.json()["code"]) == (504, "deadline-exceeded")
    assert "before its answer was complete" in late.json()["detail"]
    assert (len(engine.running), len(engine.aborted)) == (0, 1)


async def test_scoring_has_a_deadline_too(client: httpx.AsyncClient, services: Services) -> None:
    engine = engine_of(services)
    engine.hold()
    films = {"history": ["Ronin"], "candidates": ["Heat", "Alien"], "k": 1}
    body = {"adapter": "base", "task": "recommendation", "input": films, "timeout": 0.05}
    assert (await client.post("/api/predict", json=body)).status_code == 504
    assert len(engine.aborted) == 1


async def test_a_stream_whose_time_is_over_ends_with_an_error(client: httpx.AsyncClient, services: Services) -> None:
    engine = engine_of(services)

    def stop_after_the_first_word(_: GenerateRequest) -> str:
        engine.hold()
        return "a b c"

    engine.answer = stop_after_the_first_word
    native = await client.post("/api/predict", json={**NATIVE, "timeout": 0.1, "stream": True})
    engine.release()
    openai = await client.post(
        "/v1/chat/completions", json={**CHAT, "stream": True}, headers={"X-Graft-Timeout": "0.1"}
    )
    assert (native.status_code, openai.status_code) == (200, 200)
    first, last = [json.loads(event["data"]) for event in sse(native.text)]
    assert (first["delta"], last["event"], last["problem"]["code"]) == ("a", "error", "deadline-exceeded")
    *_, error, done = [event["data"] for event in sse(openai.text)]
    assert json.loads(error)["error"]["type"] == "timeout"
    assert json.loads(error)["error"]["code"] == "deadline_exceeded"
    assert done == "[DONE]"
    assert (len(engine.running), len(engine.aborted)) == (0, 2)


async def test_the_header_of_v1_and_its_error(client: httpx.AsyncClient, services: Services) -> None:
    engine = engine_of(services)
    engine.hold()
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", {"model": "base", "prompt": ["a", "b"]})):
        late = await client.post(path, json=body, headers={"X-Graft-Timeout": "0.05"})
        assert late.status_code == 504
        assert (late.json()["error"]["type"], late.json()["error"]["code"]) == ("timeout", "deadline_exceeded")
    assert not engine.running


@pytest.mark.parametrize("seconds", [0, -1, 3601, "soon", "nan"])
async def test_a_timeout_that_is_none_is_refused_by_its_name(client: httpx.AsyncClient, seconds: object) -> None:
    native = await client.post("/api/predict", json={**NATIVE, "timeout": seconds})
    assert (native.status_code, native.json()["errors"][0]["place"]) == (422, "timeout")
    openai = await client.post("/v1/chat/completions", json=CHAT, headers={"X-Graft-Timeout": str(seconds)})
    assert (openai.status_code, openai.json()["error"]["param"]) == (400, "X-Graft-Timeout")


async def test_the_servers_own_timeout_holds_where_a_request_brings_none(tmp_path: Path) -> None:
    services = make_services(tmp_path, request_timeout_seconds=0.05)
    engine_of(services).hold()
    async with in_memory(services) as client:
        for path, body in (("/api/predict", NATIVE), ("/v1/chat/completions", CHAT)):
            assert (await client.post(path, json=body)).status_code == 504
        response = await client.post("/api/predict/bulk", json={"items": [NATIVE]})
        assert json.loads(response.text)["problem"]["code"] == "deadline-exceeded"
    services.registry.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_that_hangs_up_while_it_waits_leaves_the_queue_at_once(narrow: Services, stream: bool) -> None:
    engine = engine_of(narrow)
    engine.hold()
    async with on_socket(narrow) as (client, _):
        first = asyncio.create_task(client.post("/api/predict", json=NATIVE))
        await engine.until(lambda engine: len(engine.running) == 1)
        for path, body in (("/api/predict", NATIVE), ("/v1/chat/completions", CHAT)):
            waiting = asyncio.create_task(client.post(path, json={**body, "stream": stream}))
            async with asyncio.timeout(10):
                while narrow.predictor.queued != 1:
                    await asyncio.sleep(0.005)
                waiting.cancel()
                while narrow.predictor.queued:
                    await asyncio.sleep(0.005)
        engine.release()
        assert (await first).status_code == 200
    assert len(engine.requests) == 1, "the others never came to the engine"


async def test_background_requests_let_others_go_first(narrow: Services) -> None:
    engine = engine_of(narrow)
    engine.hold()
    async with in_memory(narrow) as client:
        calls = [asyncio.create_task(client.post("/api/predict", json={**NATIVE, "text": "first"}))]
        await engine.until(lambda engine: len(engine.running) == 1)
        for text, priority in (("bulk", "background"), ("person", "interactive")):
            waiting = narrow.predictor.queued
            body = {**NATIVE, "text": text, "priority": priority}
            calls.append(asyncio.create_task(client.post("/api/predict", json=body)))
            await until(lambda: narrow.predictor.queued == waiting + 1)  # noqa: B023 - asked at once
        engine.release()
        await asyncio.gather(*calls)
    assert [request.prompt.messages[-1].content for request in engine.requests] == ["first", "person", "bulk"]


def plan_of(prompt: Prompt, decoding: Generate | Score, services: Services) -> Plan:
    task = services.host.task("chat")
    return Plan(Route(task=task, state=task.state_model()), None, prompt, decoding)


def test_what_a_request_costs(services: Services) -> None:
    talk = Prompt(messages=(Message(role="system", content="x" * 40), Message(role="user", content="y" * 60)))
    assert estimated_tokens(plan_of(talk, Generate(sampling=Sampling(max_tokens=100)), services), 1000) == 125
    assert estimated_tokens(plan_of(talk, Generate(sampling=Sampling(max_tokens=10**6)), services), 1000) == 1000
    verbatim = Prompt(text="文" * 40)
    assert estimated_tokens(plan_of(verbatim, Generate(sampling=Sampling(max_tokens=1)), services), 1000) == 31
    scored = Score(candidates=("a" * 8, "b" * 80))
    assert estimated_tokens(plan_of(verbatim, scored, services), 1000) == 30 + 3 + 21
