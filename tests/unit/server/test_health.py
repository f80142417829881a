"""Health, status and figures."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from graft_server.services import Services
from support.serving import engine_of, in_memory, make_services, publish


async def test_a_running_server_is_live_and_ready(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/live")).json()["status"] == "live"
    ready = await client.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")


@pytest.mark.parametrize("state", ["starting", "rebuilding", "failed"])
async def test_without_an_engine_it_is_live_but_not_ready(
    client: httpx.AsyncClient, services: Services, state: str
) -> None:
    engine_of(services).state = state
    engine_of(services).error = "no memory left"
    assert (await client.get("/health/live")).status_code == 200
    ready = await client.get("/health/ready")
    assert ready.status_code == 503
    assert ready.json() == {"status": state, "detail": "no memory left"}
    status = (await client.get("/api/status")).json()
    assert (status["ready"], status["engine"]["state"]) == (False, state)


async def test_status_tells_of_engine_base_and_registry(client: httpx.AsyncClient) -> None:
    status = (await client.get("/api/status")).json()
    assert status["base_model"]["name"] == "tiny"
    assert status["base_model"]["context_length"] == 1000
    assert status["base_model"]["path"] == "/models/tiny"
    assert (status["engine"]["name"], status["engine"]["slots"]) == ("scripted", 4)
    assert (status["adapters"], status["versions"]) == (0, 0)
    assert "translation" in status["tasks"]


async def test_status_tells_what_each_adapter_has_to_do(tmp_path: Path) -> None:
    services = make_services(tmp_path, max_sequences=2)
    engine = engine_of(services)
    for name in ("de", "films"):
        publish(services, tmp_path, name)
    engine.loaded = ("de@1", "idle@3")
    async with in_memory(services) as client:
        await client.post("/api/predict", json={"adapter": "de", "text": "three words here"})
        engine.hold()

        def ask(name: str) -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(client.post("/api/predict", json={"adapter": name, "text": "x"}))

        asking = [ask("de"), ask("de")]
        await engine.until(lambda engine: len(engine.running) == 2)
        asking.append(ask("films"))
        while services.predictor.queued < 1:
            await asyncio.sleep(0.01)
        status = (await client.get("/api/status")).json()
        engine.release()
        await asyncio.gather(*asking)
        after = (await client.get("/api/status")).json()
    services.registry.close()
    assert (status["admitted_requests"], status["queued_requests"]) == (2, 1)
    assert 0 < status["queue_age_seconds"] < 10
    rows = {row.pop("ref"): row for row in status["traffic"]}
    assert list(rows) == ["de@1", "films@1", "idle@3"]
    assert rows["de@1"] == {"loaded": True, "running": 2, "waiting": 0, "tokens_per_second": 0.4}
    assert rows["films@1"] == {"loaded": False, "running": 0, "waiting": 1, "tokens_per_second": 0.0}
    assert rows["idle@3"] == {"loaded": True, "running": 0, "waiting": 0, "tokens_per_second": 0.0}
    assert (after["admitted_requests"], after["queued_requests"], after["queue_age_seconds"]) == (0, 0, 0)
    assert all(row["running"] == row["waiting"] == 0 for row in after["traffic"])


async def test_status_tells_what_the_engine_counted(client: httpx.AsyncClient, services: Services) -> None:
    engine_of(services).preemptions = 7
    engine = (await client.get("/api/status")).json()["engine"]
    assert (engine["preemptions"], engine["reused_tokens"], engine["evictions"]) == (7, 0, 0)
    assert 0 <= engine["stats_age_seconds"] < 5


async def test_requests_are_counted_by_route_and_never_by_raw_path(client: httpx.AsyncClient) -> None:
    await client.get("/api/adapters/one")
    await client.get("/api/adapters/two")
    await client.get("/no/such/thing")
    await client.post("/api/predict", json={"adapter": "base", "text": "two words"})
    figures = (await client.get("/metrics")).text
    line = 'graft_http_requests_total{method="GET",route="/api/adapters/{name}",status="4xx"} 2.0'
    assert line in figures
    assert 'route="unmatched",status="4xx"} 1.0' in figures
    assert 'graft_predictions_total{outcome="ok"} 1.0' in figures
    assert 'graft_tokens_total{kind="prompt"} 2.0' in figures
    assert "/no/such/thing" not in figures
