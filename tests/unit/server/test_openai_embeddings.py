"""Embeddings, as the official OpenAI SDK asks for them."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import openai
import pytest

from graft_server.services import Services
from support.openai_sdk import openai_sdk
from support.serving import ExtraPlugin, engine_of, in_memory, make_services, publish
from support.waiting import until


def direction(words: int) -> list[float]:
    return [math.cos(words), math.sin(words)]


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}])
async def test_texts_are_embedded_in_their_order(services: Services, form: dict[str, Any]) -> None:
    # Without a format, the SDK asks for base64 and unpacks it.
    async with openai_sdk(services) as sdk:
        answer = await sdk.asynchronous.embeddings.create(model="tiny", input=["one two", "three"], **form)
        one = await asyncio.to_thread(lambda: sdk.blocking.embeddings.create(model="base", input="a b c", **form))
    assert [each.index for each in answer.data] == [0, 1]
    assert answer.data[0].embedding == pytest.approx(direction(2), abs=1e-6)
    assert answer.data[1].embedding == pytest.approx(direction(1), abs=1e-6)
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("tiny", 3, 3)
    assert one.data[0].embedding == pytest.approx(direction(3), abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "param", "message"),
    [
        ({"input": [1, 2]}, "input", "token ids"),
        ({"input": [[1, 2], [3]]}, "input", "token ids"),
        ({"input": []}, "input", "0 texts"),
        ({"input": ["a"] * 2049}, "input", "2049 texts"),
        ({"input": ["a", ""]}, "input", "empty"),
        ({"dimensions": 8}, "dimensions", "can't be shortened"),
        ({"model": "de"}, "model", "ask for 'tiny'"),
        ({"input": "word " * 1200}, None, "1200 tokens"),
    ],
)
async def test_what_is_refused_says_why(
    services: Services, tmp_path: Path, wrong: dict[str, Any], param: str | None, message: str
) -> None:
    publish(services, tmp_path, "de")
    async with openai_sdk(services) as sdk:
        with pytest.raises(openai.BadRequestError, match=message) as caught:
            await sdk.asynchronous.embeddings.create(**{"model": "tiny", "input": "a", **wrong})
    assert (caught.value.type, caught.value.param) == ("invalid_request_error", param)


async def test_an_unknown_model(services: Services) -> None:
    async with openai_sdk(services) as sdk:
        with pytest.raises(openai.NotFoundError) as caught:
            await sdk.asynchronous.embeddings.create(model="nobody", input="a")
    assert caught.value.code == "model_not_found"


async def test_an_engine_that_does_not_run_and_one_that_takes_too_long(services: Services) -> None:
    engine = engine_of(services)
    async with openai_sdk(services) as sdk:
        create = sdk.asynchronous.embeddings.create
        engine.hold()
        with pytest.raises(openai.InternalServerError, match="were over") as late:
            await create(model="tiny", input="a", extra_headers={"X-Graft-Timeout": "0.1"})
        engine.state = "starting"
        with pytest.raises(openai.InternalServerError) as early:
            await create(model="tiny", input="a")
    assert (late.value.status_code, early.value.status_code) == (504, 503)


async def test_they_wait_their_turn_and_a_full_queue_refuses_them(tmp_path: Path) -> None:
    services = make_services(tmp_path, max_sequences=1, max_queued=1)
    engine = engine_of(services)
    engine.hold()
    async with openai_sdk(services) as sdk:
        ask = sdk.asynchronous.embeddings.create
        first = asyncio.create_task(ask(model="tiny", input="one"))
        second = asyncio.create_task(ask(model="tiny", input="two"))
        await until(lambda: services.predictor.queued == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(model="tiny", input="three")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        engine.release()
        assert len((await first).data) == len((await second).data) == 1


async def test_they_are_counted_and_told_to_plugins(tmp_path: Path) -> None:
    plugin = ExtraPlugin()
    services = make_services(tmp_path, plugin=plugin)
    async with openai_sdk(services) as sdk:
        await sdk.asynchronous.embeddings.create(model="tiny", input=["one two", "secret"])
        with pytest.raises(openai.BadRequestError):
            await sdk.asynchronous.embeddings.create(model="tiny", input="word " * 1200)
    async with in_memory(services) as http:
        figures = (await http.get("/metrics")).text
    services.observers.close()
    services.registry.close()
    for line in (
        'graft_adapter_predictions_total{adapter="base",outcome="ok"} 1.0',
        'graft_adapter_predictions_total{adapter="base",outcome="prompt-too-long"} 1.0',
        'graft_adapter_tokens_total{adapter="base",kind="prompt"} 3.0',
        "graft_request_seconds_count 1.0",
    ):
        assert line in figures.splitlines()
    assert [(told["adapter"], told["task"], told["error"]) for told in plugin.served] == [
        ("base", "embeddings", None),
        ("base", "embeddings", "prompt-too-long"),
    ]
    assert plugin.served[0]["usage"] == {"prompt_tokens": 3, "completion_tokens": 0}
    assert plugin.served[0]["timings"]["total"] > 0
    assert "secret" not in str(plugin.served)
