"""Health, status and figures."""

from __future__ import annotations

import httpx
import pytest

from graft_server.services import Services
from support.serving import engine_of


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
