"""Promotions, gates, rollbacks and garbage collection over HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_server.services import Services
from support.scripted_engine import last_words
from support.serving import engine_of, ndjson, parts, publish

ROWS = [{"source": f"{word} lamp", "target": f"{word} Lampe"} for word in ("red", "green", "blue", "old", "new")]
ALIAS = "/api/adapters/de/aliases/production"


@pytest.fixture
def services(services: Services, tmp_path: Path) -> Services:
    for _ in range(3):
        publish(services, tmp_path, "de")
    return services


async def promote(client: httpx.AsyncClient, version: int, **body: Any) -> dict[str, Any]:
    response = await client.post(ALIAS, json={"version": version, **body})
    assert response.status_code == 200, response.text
    return dict(response.json())


async def answering(client: httpx.AsyncClient, adapter: str) -> str:
    response = await client.post("/api/predict", json={"adapter": adapter, "text": "x"})
    assert response.status_code == 200, response.text
    return str(response.json()["adapter"])


async def store(client: httpx.AsyncClient) -> str:
    content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    response = await client.post("/api/datasets", data={"task": "translation"}, files=parts({"rows.jsonl": content}))
    return str(response.json()["id"])


async def behind_gate(client: httpx.AsyncClient, version: int, **body: Any) -> dict[str, Any]:
    """The last line of a promotion behind a gate."""
    response = await client.post(f"{ALIAS}/gate", json={"version": version, "dataset": await store(client), **body})
    assert response.status_code == 200, response.text
    return ndjson(response.text)[-1]


async def test_requests_follow_an_alias_everywhere(client: httpx.AsyncClient) -> None:
    event = await promote(client, 2, why="good")
    assert (event["version"], event["previous"], event["who"], event["why"]) == (
        2,
        None,
        "anyone on this machine",
        "good",
    )
    assert await answering(client, "de@production") == "de@2"
    assert await answering(client, "de") == await answering(client, "de@latest") == "de@3"
    assert (await client.get("/api/adapters/de")).json()["aliases"] == {"production": 2}
    assert (await client.get("/api/adapters/de/versions/production")).json()["ref"] == "de@2"
    assert (await client.get("/api/adapters/de@production/archive")).headers["x-graft-adapter"] == "de@2"
    chat = {"model": "de@production", "messages": [{"role": "user", "content": "x"}]}
    assert (await client.post("/v1/chat/completions", json=chat)).json()["model"] == "de@2"
    assert (await client.get("/v1/models/de@production")).json()["root"] == "de@2"
    await promote(client, 3)
    assert await answering(client, "de@production") == "de@3"
    assert (await client.post(f"{ALIAS}/rollback", json={})).json()["version"] == 2
    assert await answering(client, "de@production") == "de@2"
    history = (await client.get("/api/adapters/de/history")).json()
    assert [(event["kind"], event["version"], event["previous"]) for event in history] == [
        ("rollback", 2, 3),
        ("promote", 3, 2),
        ("promote", 2, None),
    ]
    assert (await client.delete(ALIAS, params={"why": "done"})).json()["kind"] == "remove"
    gone = await client.post("/api/predict", json={"adapter": "de@production", "text": "x"})
    assert (gone.status_code, gone.json()["code"]) == (404, "unknown-version")


async def test_what_does_not_exist_is_not_promoted(client: httpx.AsyncClient) -> None:
    response = await client.post(ALIAS, json={"version": 9})
    assert (response.status_code, response.json()["code"], response.json()["nearest"]) == (
        404,
        "unknown-version",
        "de@3",
    )
    response = await client.post("/api/adapters/de/aliases/latest", json={"version": 1})
    assert (response.status_code, response.json()["code"]) == (422, "invalid-name")


async def test_what_can_not_be_served_is_not_promoted(client: httpx.AsyncClient, services: Services) -> None:
    await promote(client, 1)
    engine = engine_of(services)
    engine.unloadable = "rank 99 is more than 32"
    response = await client.post(ALIAS, json={"version": 2})
    assert (response.status_code, response.json()["code"]) == (422, "unservable")
    assert "rank 99 is more than 32" in response.json()["detail"]
    engine.unloadable = None
    weights = services.registry.version("de", 2).path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    response = await client.post(ALIAS, json={"version": 2})
    assert (response.status_code, response.json()["code"]) == (422, "unservable")
    assert "not those that were stored" in response.json()["detail"]
    assert await answering(client, "de@production") == "de@1"


async def test_who_saw_another_version_in_place_is_told(client: httpx.AsyncClient) -> None:
    await promote(client, 1, in_place=0)
    response = await client.post(ALIAS, json={"version": 2, "in_place": 0})
    assert (response.status_code, response.json()["code"]) == (409, "conflict")
    assert "de@production stands for de@1 by now" in response.json()["detail"]
    await promote(client, 2, in_place=1)


async def test_two_promotes_at_once(client: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(
        *(client.post(ALIAS, json={"version": number, "in_place": 0}) for number in (1, 2, 3))
    )
    [winner] = [response for response in responses if response.status_code == 200]
    losers = [response for response in responses if response.status_code == 409]
    assert len(losers) == 2
    number = winner.json()["version"]
    assert all(f"de@{number}" in loser.json()["detail"] for loser in losers)
    assert await answering(client, "de@production") == f"de@{number}"


async def test_a_gate_lets_the_better_version_through(client: httpx.AsyncClient, services: Services) -> None:
    good = {"de@2", "de@3"}
    engine_of(services).answer = lambda request: (
        last_words(request.prompt).replace("lamp", "Lampe")
        if request.adapter and request.adapter.ref in good
        else "something else"
    )
    refused = await behind_gate(client, 1, min_delta=0.1)
    assert refused["problem"]["code"] == "gate-refused"
    assert "de@1 has chrf" in refused["problem"]["detail"]
    assert "base" in refused["problem"]["detail"]
    passed = await behind_gate(client, 2)
    assert passed["done"] == passed["total"] == 10
    gate = passed["event"]["gate"]
    assert (gate["metric"], gate["against"], gate["rows"], gate["score"]) == ("chrf", "base", 5, pytest.approx(100))
    assert await answering(client, "de@production") == "de@2"
    worse = await behind_gate(client, 1)
    assert "de@2 100" in worse["problem"]["detail"]
    assert (await behind_gate(client, 3, min_delta=1))["problem"]["code"] == "gate-refused"
    assert (await behind_gate(client, 3))["event"]["version"] == 3
    kinds = [event["kind"] for event in (await client.get("/api/adapters/de/history")).json()]
    assert kinds == ["promote", "refused", "refused", "promote", "refused"]


async def test_a_promote_while_the_gate_measures_wins(client: httpx.AsyncClient, services: Services) -> None:
    engine = engine_of(services)
    engine.hold()
    measuring = asyncio.create_task(behind_gate(client, 2, min_delta=-100))
    await engine.until(lambda engine: len(engine.running) > 0)
    await promote(client, 3)
    engine.release()
    last = await measuring
    assert last["problem"]["code"] == "conflict"
    assert "was moved to de@3 by anyone on this machine meanwhile" in last["problem"]["detail"]
    assert (await client.get("/api/adapters/de")).json()["aliases"] == {"production": 3}


async def test_what_is_aliased_or_in_flight_is_not_deleted(client: httpx.AsyncClient, services: Services) -> None:
    await promote(client, 1)
    for url in ("/api/adapters/de/versions/1", "/api/adapters/de"):
        response = await client.delete(url)
        assert (response.status_code, response.json()["code"]) == (409, "conflict")
        assert "de@1 is what de@production stands for" in response.json()["detail"]
    engine = engine_of(services)
    engine.hold()
    asking = asyncio.create_task(answering(client, "de@2"))
    await engine.until(lambda engine: len(engine.running) == 1)
    response = await client.delete("/api/adapters/de/versions/2")
    assert (response.status_code, response.json()["code"]) == (409, "conflict")
    assert "a request is in flight for de@2" in response.json()["detail"]
    engine.release()
    assert await asking == "de@2"
    assert (await client.delete("/api/adapters/de/versions/2")).status_code == 204


async def test_old_versions_go_but_not_what_is_needed(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    for _ in range(5):
        publish(services, tmp_path, "de")
    await promote(client, 2)
    await promote(client, 3)
    assert (await client.post("/api/adapters/de/versions/4/pin")).status_code == 200
    engine = engine_of(services)
    engine.hold()
    asking = asyncio.create_task(answering(client, "de@5"))
    await engine.until(lambda engine: len(engine.running) == 1)
    plan = (await client.post("/api/gc", json={"keep": 2})).json()
    assert plan["dry_run"] is True
    assert [version["ref"] for version in plan["deleted"]] == ["de@1", "de@6"]
    reasons = {version["ref"]: version["kept_because"] for version in plan["kept"]}
    assert reasons == {
        "de@2": "what a rollback of de@production goes to",
        "de@3": "is de@production",
        "de@4": "is pinned",
        "de@5": "has requests in flight",
    }
    assert len((await client.get("/api/adapters/de")).json()["versions"]) == 8
    young = (await client.post("/api/gc", json={"keep": 2, "older_than_days": 1, "dry_run": False})).json()
    assert young["deleted"] == young["kept"] == []
    done = (await client.post("/api/gc", json={"keep": 2, "dry_run": False})).json()
    assert done["deleted"] == plan["deleted"]
    assert done["freed_bytes"] == plan["freed_bytes"] > 0
    assert len(engine.unloaded) == 2
    engine.release()
    assert await asking == "de@5"
    left = [version["version"] for version in (await client.get("/api/adapters/de")).json()["versions"]]
    assert left == [2, 3, 4, 5, 7, 8]
    unknown = await client.post("/api/gc", json={"adapter": "fr"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown-adapter")
