"""Native predictions: routing, answers, streams, bulk, and what happens when something goes wrong on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_client.schemas.predict import SamplingOverrides
from graft_plugins.router import RouteCandidate, RouteChoice, Router
from graft_plugins.task import Output, Prompt
from graft_plugins.tasks.translation import TranslationTask
from graft_server.engine.base import Delta, EngineDiedError, GenerateRequest, SamplingParams
from graft_server.services import Services
from support.serving import ExtraPlugin, engine_of, in_memory, make_services, ndjson, on_socket, publish, sse


class WordRouter(Router):
    name = "word"
    description = "Chooses the adapter whose name stands in the text."

    def choose(self, text: str, candidates: Sequence[RouteCandidate]) -> RouteChoice | None:
        if "broken" in text:
            raise RuntimeError("lost the map")
        for candidate in candidates:
            if candidate.name in text:
                return RouteChoice(candidate.name, 0.75)
        return None


class FaultyTask(TranslationTask):
    name = "faulty"

    def prompt(self, request: Any, state: Any) -> Prompt:
        if request.text == "prompt":
            raise KeyError("no such key")
        return super().prompt(request, state)

    def parse(self, request: Any, output: Output, state: Any) -> Any:
        raise IndexError("nothing there")


async def ask(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/api/predict", json=body)


async def test_an_adapter_answers_through_its_task(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de", state={"source_language": "en", "target_language": "de"})
    response = await ask(client, adapter="de", text="Turn off {room}")
    assert response.status_code == 200
    assert response.headers["x-graft-adapter"] == "de@1"
    answer = response.json()
    assert answer["adapter"] == "de@1"
    assert answer["task"] == "translation"
    assert answer["text"] == "de@1: Turn off {room}"
    assert answer["output"] == {"translation": "de@1: Turn off {room}", "missing_placeholders": []}
    assert answer["usage"] == {"prompt_tokens": 8, "completion_tokens": 4}
    assert 0 <= answer["timings"]["first_token"] <= answer["timings"]["total"]
    system = engine_of(services).requests[0].prompt.messages[0].content
    assert system == "Translate from English to German."


async def test_a_name_is_the_latest_version_and_a_number_stays(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de")
    publish(services, tmp_path, "de")
    assert (await ask(client, adapter="de", text="x")).json()["adapter"] == "de@2"
    assert (await ask(client, adapter="de@1", text="x")).json()["adapter"] == "de@1"


async def test_a_task_alone_goes_to_its_newest_adapter_or_honestly_to_the_base(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    response = await ask(client, task="translation", text="x")
    assert response.json()["adapter"] == "base"
    assert "no adapter serves" in response.headers["x-graft-route"]
    publish(services, tmp_path, "de")
    publish(services, tmp_path, "fr")
    assert (await ask(client, task="translation", text="x")).json()["adapter"] == "fr@1"


@pytest.mark.parametrize("name", ["base", "tiny"])
async def test_the_base_model_answers_by_either_name(client: httpx.AsyncClient, name: str) -> None:
    answer = (await ask(client, adapter=name, text="hello you")).json()
    assert (answer["adapter"], answer["task"], answer["text"]) == ("base", "chat", "base: hello you")


@pytest.mark.parametrize(
    ("body", "code", "nearest"),
    [
        ({"adapter": "dee", "text": "x"}, "unknown-adapter", "de"),
        ({"adapter": "de@7", "text": "x"}, "unknown-version", "de@1"),
        ({"adapter": "de@newest", "text": "x"}, "unknown-version", "de@1"),
        ({"task": "translatoin", "text": "x"}, "unknown-task", "translation"),
        ({"adapter": "base", "task": "zzz", "text": "x"}, "unknown-task", None),
    ],
)
async def test_an_unknown_name_is_told_with_the_nearest(
    client: httpx.AsyncClient,
    services: Services,
    tmp_path: Path,
    body: dict[str, Any],
    code: str,
    nearest: str | None,
) -> None:
    publish(services, tmp_path, "de")
    response = await ask(client, **body)
    assert (response.status_code, response.json()["code"]) == (404, code)
    assert response.json().get("nearest") == nearest


async def test_an_adapter_of_another_task_is_a_conflict(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de")
    response = await ask(client, adapter="de", task="chat", text="x")
    assert (response.status_code, response.json()["code"]) == (409, "task-mismatch")


async def test_an_adapter_whose_task_is_gone_says_so(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    publish(services, tmp_path, "old", "retired-task")
    response = await ask(client, adapter="old", text="x")
    assert (response.status_code, response.json()["code"]) == (409, "task-missing")
    assert "retired-task" in response.json()["detail"]


async def test_auto_asks_the_routers_and_falls_back_to_the_base(tmp_path: Path) -> None:
    services = make_services(tmp_path, plugin=ExtraPlugin(routers=[WordRouter()]))
    publish(services, tmp_path, "de")
    publish(services, tmp_path, "fr")
    async with in_memory(services) as client:
        response = await ask(client, adapter="auto", text="please fr now")
        assert response.json()["adapter"] == "fr@1"
        assert response.headers["x-graft-route"] == "router word chose fr@1 with confidence 0.75"
        for text in ("nothing that fits", "broken"):
            response = await ask(client, adapter="auto", text=text)
            assert response.json()["adapter"] == "base"
            assert "no router chose" in response.headers["x-graft-route"]
    services.registry.close()


async def test_a_wrong_input_is_told_by_its_field(client: httpx.AsyncClient) -> None:
    response = await ask(client, adapter="base", task="translation", input={"text": "", "source_language": 3})
    assert response.status_code == 422
    places = {error["place"] for error in response.json()["errors"]}
    assert places == {"input.text", "input.source_language"}


async def test_a_text_the_task_refuses(client: httpx.AsyncClient) -> None:
    response = await ask(client, adapter="base", task="translation", text="  ")
    assert response.status_code == 422
    assert response.json()["detail"] == "there is no text to translate"


async def test_sampling_overrides_reach_the_engine_and_nothing_else_changes(
    client: httpx.AsyncClient, services: Services
) -> None:
    sampling = {"max_tokens": 2, "temperature": 0.5, "stop": ["END"], "seed": 7, "ignore_eos": True}
    response = await ask(client, adapter="base", task="translation", text="one two three", sampling=sampling)
    assert response.json()["finish_reason"] == "length"
    params = engine_of(services).requests[0].sampling
    assert (params.max_tokens, params.temperature, params.stop, params.seed) == (2, 0.5, ("END",), 7)
    assert params.top_p == 1.0


async def test_every_override_reaches_the_engine(client: httpx.AsyncClient, services: Services) -> None:
    given = {
        "max_tokens": 9,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "seed": 7,
        "repetition_penalty": 1.2,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {"5": -100},
        "stop": ["END"],
        "stop_token_ids": [3, 4],
        "ignore_eos": True,
    }
    assert set(given) == set(SamplingOverrides.model_fields)
    response = await ask(client, adapter="base", text="x", sampling=given)
    assert response.status_code == 200, response.text
    changed = {"logit_bias": {5: -100.0}, "stop": ("END",), "stop_token_ids": (3, 4)}
    assert engine_of(services).requests[0].sampling == SamplingParams(**{**given, **changed})


@pytest.mark.parametrize(
    ("sampling", "place"),
    [
        ({"min_p": -0.1}, "sampling.min_p"),
        ({"repetition_penalty": 0}, "sampling.repetition_penalty"),
        ({"presence_penalty": 3}, "sampling.presence_penalty"),
        ({"frequency_penalty": -2.1}, "sampling.frequency_penalty"),
        ({"logit_bias": {"5": -101}}, "sampling.logit_bias.5"),
        ({"logit_bias": {"x": 0}}, "sampling.logit_bias.x.[key]"),
        ({"stop_token_ids": [1, "a"]}, "sampling.stop_token_ids.1"),
        ({"min_tokens": -1}, "sampling.min_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "sampling"),
        ({"ignore_eos": 7}, "sampling.ignore_eos"),
        ({"seed": -(2**63) - 1}, "sampling.seed"),
    ],
    ids=str,
)
async def test_a_bad_override_is_told_by_its_place(
    client: httpx.AsyncClient, sampling: dict[str, Any], place: str
) -> None:
    response = await ask(client, adapter="base", text="x", sampling=sampling)
    assert (response.status_code, response.json()["code"]) == (422, "invalid-request")
    assert [error["place"] for error in response.json()["errors"]] == [place]


async def test_recommendations_are_scored(client: httpx.AsyncClient) -> None:
    films = ["Heat", "Alien", "Up"]
    request = {"history": ["Ronin"], "candidates": films, "k": 2}
    response = await ask(client, adapter="base", task="recommendation", input=request)
    assert response.status_code == 200, response.text
    assert set(response.json()["output"]) >= {"items"}
    assert response.json()["usage"]["completion_tokens"] == 3


async def test_a_prompt_over_the_context_is_told_with_the_numbers(client: httpx.AsyncClient) -> None:
    response = await ask(client, adapter="base", text="word " * 1200)
    assert (response.status_code, response.json()["code"]) == (422, "prompt-too-long")
    assert "1200" in response.json()["detail"]
    assert "1000" in response.json()["detail"]


@pytest.mark.parametrize(("text", "doing"), [("prompt", "building the prompt"), ("other", "parsing the answer")])
async def test_a_faulty_task_is_named_with_its_file_and_the_server_goes_on(
    tmp_path: Path, text: str, doing: str
) -> None:
    services = make_services(tmp_path, plugin=ExtraPlugin(tasks=[FaultyTask()]))
    async with in_memory(services) as client:
        response = await ask(client, adapter="base", task="faulty", text=text)
        assert (response.status_code, response.json()["code"]) == (500, "plugin-fault")
        detail = response.json()["detail"]
        assert "'faulty'" in detail
        assert doing in detail
        assert "test_predict.py:" in detail
        assert (await ask(client, adapter="base", text="fine")).status_code == 200
    services.registry.close()


@pytest.mark.parametrize(
    ("state", "code"), [("starting", "not-ready"), ("failed", "engine-unavailable"), ("stopped", "engine-unavailable")]
)
async def test_without_an_engine_the_answer_is_503_with_retry_after(
    client: httpx.AsyncClient, services: Services, state: str, code: str
) -> None:
    engine_of(services).state = state
    response = await ask(client, adapter="base", text="x")
    assert (response.status_code, response.json()["code"]) == (503, code)
    assert int(response.headers["retry-after"]) >= 1


async def test_an_engine_that_dies_before_the_first_text_is_a_502(
    client: httpx.AsyncClient, services: Services
) -> None:
    engine_of(services).die()
    for stream in (False, True):
        response = await ask(client, adapter="base", text="x", stream=stream)
        assert (response.status_code, response.json()["code"]) == (502, "engine-died")


async def test_a_whole_answer_that_the_engine_died_in_is_begun_anew_once(
    client: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine_of(services).generate
    deaths = [1]

    async def generate(request: GenerateRequest) -> AsyncIterator[Delta]:
        async for delta in whole(request):
            yield delta
            if deaths[0]:
                deaths[0] -= 1
                raise EngineDiedError("the engine's process ended (signal SIGKILL) during the answer")

    monkeypatch.setattr(engine_of(services), "generate", generate)
    assert (await ask(client, adapter="base", text="a b")).json()["text"] == "base: a b"
    assert len(engine_of(services).requests) == 2
    deaths[0] = 2
    assert (await ask(client, adapter="base", text="a b")).json()["code"] == "engine-died"
    assert len(engine_of(services).requests) == 4


async def test_an_answer_that_the_engine_cuts_off_is_told_at_once(
    client: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine_of(services).generate

    async def cut_off(request: GenerateRequest) -> AsyncIterator[Delta]:
        async for delta in whole(request):
            if delta.finish_reason is None:
                yield delta

    monkeypatch.setattr(engine_of(services), "generate", cut_off)
    response = await ask(client, adapter="base", text="a b")
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert len(engine_of(services).requests) == 1
    streamed = sse((await ask(client, adapter="base", text="a b", stream=True)).text)
    assert [event["event"] for event in streamed] == ["delta"] * 3 + ["error"]


async def test_an_adapter_that_can_not_be_loaded(client: httpx.AsyncClient, services: Services, tmp_path: Path) -> None:
    publish(services, tmp_path, "de")
    engine_of(services).unloadable = "adapter_model.safetensors: tensor x has NaNs"
    response = await ask(client, adapter="de", text="x")
    assert (response.status_code, response.json()["code"]) == (500, "adapter-unloadable")
    assert "NaNs" in response.json()["detail"]


async def test_a_state_that_is_none_of_the_task_is_told_with_its_file(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de", state={"source_language": 5})
    response = await ask(client, adapter="de", text="x")
    assert response.json()["code"] == "adapter-unloadable"
    assert "task_state.json" in response.json()["detail"]


async def test_a_stream_has_deltas_and_then_the_result(client: httpx.AsyncClient) -> None:
    response = await ask(client, adapter="base", text="a b c", stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-graft-adapter"] == "base"
    events = [(event["event"], json.loads(event["data"])) for event in sse(response.text)]
    assert [kind for kind, _ in events] == ["delta"] * 4 + ["result"]
    text = "".join(data["delta"] for kind, data in events if kind == "delta")
    assert text == "base: a b c"
    assert events[-1][1]["result"]["text"] == text


async def test_an_error_within_a_stream_is_its_last_event(services: Services) -> None:
    engine = engine_of(services)
    async with on_socket(services) as (client, _):
        body = {"adapter": "base", "text": "a b c", "stream": True}
        async with client.stream("POST", "/api/predict", json=body) as response:
            lines = response.aiter_lines()
            received = [await anext(lines)]
            # The rest of this answer is lost with the engine.
            engine.die()
            received += [line async for line in lines]
    events = sse("\n".join(received))
    assert events[0]["event"] == "delta"
    if events[-1]["event"] != "result":
        assert json.loads(events[-1]["data"])["problem"]["code"] == "engine-died"


async def test_a_caller_that_hangs_up_ends_the_work(services: Services) -> None:
    engine = engine_of(services)
    engine.hold()
    async with on_socket(services) as (client, _):
        for stream in (False, True):
            body = {"adapter": "base", "text": "x", "stream": stream}
            calling = asyncio.create_task(client.post("/api/predict", json=body))
            await engine.until(lambda engine: len(engine.running) == 1)
            calling.cancel()
            await engine.until(lambda engine: not engine.running)
        assert len(engine.aborted) == 2
        engine.release()
        assert (await client.post("/api/predict", json={"adapter": "base", "text": "x"})).status_code == 200


async def test_a_caller_that_hangs_up_in_the_middle_of_a_stream_ends_the_work(services: Services) -> None:
    engine = engine_of(services)
    endless = " ".join(["word"] * 100_000)
    engine.answer = lambda _: endless
    async with on_socket(services) as (client, _):
        body = {"adapter": "base", "text": "x", "stream": True, "sampling": {"max_tokens": 100_000}}
        async with client.stream("POST", "/api/predict", json=body) as response:
            async for line in response.aiter_lines():
                assert line
                break
            assert len(engine.running) == 1
        await engine.until(lambda engine: not engine.running)
    assert len(engine.aborted) == 1


async def test_bulk_answers_every_item_and_tells_each_ones_problem(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de")
    items = [{"adapter": name, "text": f"n{index}"} for index, name in enumerate(["de", "nobody", "base", "de@1"])]
    response = await client.post("/api/predict/bulk", json={"items": items})
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = {line["index"]: line for line in ndjson(response.text)}
    assert sorted(lines) == [0, 1, 2, 3]
    assert lines[0]["result"]["text"] == "de@1: n0"
    assert lines[1]["problem"]["code"] == "unknown-adapter"
    assert "result" not in lines[1]
    assert lines[2]["result"]["adapter"] == "base"


async def test_bulk_keeps_to_its_concurrency_and_ends_with_its_caller(tmp_path: Path) -> None:
    services = make_services(tmp_path, max_sequences=3)
    engine = engine_of(services)
    engine.hold()
    async with on_socket(services) as (client, _):
        items = [{"adapter": "base", "text": "x"}] * 20
        calling = asyncio.create_task(client.post("/api/predict/bulk", json={"items": items}))
        await engine.until(lambda engine: len(engine.running) == 3)
        calling.cancel()
        await engine.until(lambda engine: not engine.running)
        engine.release()
    assert engine.most_running == 3
    assert len(engine.requests) == 3
    services.registry.close()


async def test_a_full_queue_is_429_with_retry_after(tmp_path: Path) -> None:
    services = make_services(tmp_path, max_sequences=1, max_queued=1)
    engine = engine_of(services)
    engine.hold()
    async with in_memory(services) as client:
        first = asyncio.create_task(ask(client, adapter="base", text="x"))
        await engine.until(lambda engine: len(engine.running) == 1)
        # Of these two, one finds the only place in the queue, the other none.
        others = [asyncio.create_task(ask(client, adapter="base", text="x")) for _ in range(2)]
        done, _ = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        refused = done.pop().result()
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        engine.release()
        answers = await asyncio.gather(first, *others)
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429]
    services.registry.close()


async def test_at_most_as_many_adapters_as_slots_are_in_the_engine(tmp_path: Path) -> None:
    services = make_services(tmp_path, max_slots=2)
    engine = engine_of(services)
    for name in ("a", "b", "c"):
        publish(services, tmp_path, name)
    engine.hold()
    async with in_memory(services) as client:
        calls = [asyncio.create_task(ask(client, adapter=name, text="x")) for name in ("a", "b", "c", "a", "base")]
        await engine.until(lambda engine: len(engine.running) >= 3)
        adapters = {request.adapter.ref for request in engine.requests if request.adapter}
        assert len(adapters) <= 2
        engine.release()
        answers = [call.json()["adapter"] for call in await asyncio.gather(*calls)]
    assert answers == ["a@1", "b@1", "c@1", "a@1", "base"]
    services.registry.close()


async def test_observers_are_told_of_each_request_but_never_its_text(tmp_path: Path) -> None:
    plugin = ExtraPlugin()
    services = make_services(tmp_path, plugin=plugin)
    async with in_memory(services) as client:
        await ask(client, adapter="base", text="top secret")
        await ask(client, adapter="base", text="word " * 1200)
    services.observers.close()
    assert [told["error"] for told in plugin.served] == [None, "prompt-too-long"]
    assert plugin.served[0]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3}
    assert "secret" not in json.dumps(plugin.served)
    services.registry.close()
