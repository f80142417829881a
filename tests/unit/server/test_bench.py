"""``graft bench``'s own run against this server's real HTTP side: lengths, usage, and the refusal of a full queue."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from graft_client.bench.records import Measurements
from graft_client.bench.result import summarise
from graft_client.bench.run import run, served_model
from graft_client.bench.settings import BenchSettings
from graft_client.bench.workload import Length
from graft_server.engine.base import GenerateRequest
from graft_server.services import Services
from support.serving import engine_of, make_services, on_socket, publish


def settings(url: str, **fields: Any) -> BenchSettings:
    given = {
        "models": ["base"],
        "requests": 12,
        "prompt_tokens": Length(3, 9),
        "output_tokens": Length(2, 6),
        **({} if "rate" in fields else {"concurrency": 3}),
    }
    return BenchSettings(url=url, **{**given, **fields})


def as_long_as_asked(request: GenerateRequest) -> str:
    return " ".join(["word"] * request.sampling.max_tokens)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
async def test_answers_have_the_length_that_was_asked_for(services: Services, tmp_path: Path, endpoint: str) -> None:
    publish(services, tmp_path, "talk", "chat")
    engine = engine_of(services)
    engine.answer = as_long_as_asked
    async with on_socket(services) as (client, _):
        url = str(client.base_url)
        assert await served_model(url, None) == "tiny"
        chosen = settings(url, endpoint=endpoint, models=["talk", "base"], warmup=2)
        measurements = Measurements()
        await run(chosen, measurements, api_key=None, tell=lambda _: None)
    found = summarise(chosen, measurements, interrupted=False)
    assert (found.answered, found.failures, found.uncounted) == (12, {}, 0)
    asked = [request for request in engine.requests if isinstance(request, GenerateRequest)]
    assert all(request.sampling.ignore_eos for request in asked)
    assert found.output_tokens == sum(request.sampling.max_tokens for request in asked[2:])
    assert {request.sampling.max_tokens for request in asked} <= {2, 3, 4, 5, 6}
    assert set(found.models) == {"talk", "base"}


async def test_what_a_full_queue_refuses_is_counted_as_429(tmp_path: Path) -> None:
    services = make_services(tmp_path, max_sequences=1, max_queued=1)
    engine = engine_of(services)
    engine.hold()
    measurements = Measurements()
    async with on_socket(services) as (client, _):
        chosen = settings(str(client.base_url), rate=200.0)
        running = asyncio.create_task(run(chosen, measurements, api_key=None, tell=lambda _: None))
        # One is in the engine and one waits; the ten behind them find no room.
        async with asyncio.timeout(20):
            while len(measurements.records) < 10:
                await asyncio.sleep(0.01)
        engine.release()
        await running
    services.registry.close()
    found = summarise(chosen, measurements, interrupted=False)
    assert (found.answered, found.rejected, found.failed) == (2, 10, 10)
    assert "waiting" in found.failures["429"].example
