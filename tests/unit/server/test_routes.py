"""Routes over HTTP: canaries, sticky callers, fallbacks, shadows, guards, and explanations."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_client.schemas.routes import RouteSpec, ShadowRecord
from graft_server.engine.base import AdapterLoadError, GenerateRequest
from graft_server.services import Services
from graft_server.serving.shadows import Shadows
from support.scripted_engine import ScriptedEngine
from support.serving import engine_of, make_services, publish, sse


class Flawed(ScriptedEngine):
    """Can't load the versions in ``broken``."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[str] = set()

    def _enter(self, request: Any) -> int:
        if request.adapter is not None and request.adapter.ref in self.broken:
            raise AdapterLoadError(f"{request.adapter.ref}: its weights are gone")
        return super()._enter(request)


@pytest.fixture
def services(tmp_path: Path):
    made = make_services(tmp_path, Flawed())
    for _ in range(3):
        publish(made, tmp_path, "de")
    yield made
    made.registry.close()


async def set_route(client: httpx.AsyncClient, name: str, *weights: tuple[str, float], **rest: Any) -> dict[str, Any]:
    spec = {"targets": [{"ref": ref, "weight": weight} for ref, weight in weights], **rest}
    response = await client.post(f"/api/routes/{name}", json={"spec": spec})
    assert response.status_code == 200, response.text
    return dict(response.json())


async def ask(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/api/predict", json={"text": "x", **body})
    assert response.status_code == 200, response.text
    return {**response.json(), "headers": response.headers}


async def test_requests_of_a_task_follow_its_route(client: httpx.AsyncClient) -> None:
    assert (await ask(client, task="translation"))["adapter"] == "de@3"
    await set_route(client, "translation", ("de@1", 80), ("de@2", 20))
    counts = Counter([(await ask(client, task="translation"))["adapter"] for _ in range(200)])
    assert set(counts) == {"de@1", "de@2"}
    assert 10 < counts["de@2"] < 80
    answer = await ask(client, adapter="translation", key="ada")
    assert "route translation chose" in answer["headers"]["x-graft-route"]
    assert (await ask(client, adapter="de"))["adapter"] == "de@3"
    await set_route(client, "translation", ("de@2", 100))
    assert (await ask(client, task="translation"))["adapter"] == "de@2"
    assert (await client.delete("/api/routes/translation")).status_code == 204
    assert (await ask(client, task="translation"))["adapter"] == "de@3"


async def test_a_key_sticks_to_its_target_in_both_apis(client: httpx.AsyncClient) -> None:
    await set_route(client, "go", ("de@1", 50), ("de@2", 50))
    seen = {}
    for number in range(20):
        key = f"user-{number}"
        answers = {(await ask(client, adapter="go", key=key))["adapter"] for _ in range(3)}
        chat = {"model": "go", "messages": [{"role": "user", "content": "x"}], "user": key}
        answers.add((await client.post("/v1/chat/completions", json=chat)).json()["model"])
        text = {"model": "go", "prompt": "x", "user": key}
        answers.add((await client.post("/v1/completions", json=text)).json()["model"])
        [seen[key]] = answers
    assert set(seen.values()) == {"de@1", "de@2"}


async def test_a_route_is_refused_with_the_reason(client: httpx.AsyncClient) -> None:
    def body(*weights: tuple[str, float]) -> dict[str, Any]:
        return {"spec": {"targets": [{"ref": ref, "weight": weight} for ref, weight in weights]}}

    response = await client.post("/api/routes/go", json=body(("de@1", 90), ("de@2", 20)))
    assert (response.status_code, response.json()["code"]) == (422, "invalid-request")
    assert "90 + 20 = 110" in response.json()["detail"]
    response = await client.post("/api/routes/go", json=body(("de@9", 100)))
    assert (response.status_code, response.json()["code"]) == (404, "unknown-version")
    response = await client.post("/api/routes/chat", json=body(("de@1", 100)))
    assert (response.status_code, response.json()["code"]) == (409, "conflict")
    response = await client.get("/api/routes/gone")
    assert (response.status_code, response.json()["code"]) == (404, "unknown-route-name")
    assert (await client.get("/api/routes")).json() == []
    await set_route(client, "go", ("de@1", 100))
    response = await client.post("/api/routes/go", json={**body(("de@2", 100)), "revision": 0})
    assert (response.status_code, response.json()["code"]) == (409, "conflict")
    response = await client.post("/api/predict", json={"adapter": "go", "task": "chat", "text": "x"})
    assert (response.status_code, response.json()["code"]) == (409, "task-mismatch")


async def test_where_a_target_can_not_load_the_fallbacks_answer(client: httpx.AsyncClient, services: Services) -> None:
    engine = engine_of(services)
    await set_route(client, "go", ("de@1", 100), fallback=["de@2", "base"])
    engine.broken = {"de@1"}
    answer = await ask(client, adapter="go")
    assert (answer["adapter"], answer["text"]) == ("de@2", "de@2: x")
    assert answer["headers"]["x-graft-adapter"] == "de@2"
    assert "could not be loaded, so de@2 answers" in answer["headers"]["x-graft-route"]
    engine.broken = {"de@1", "de@2"}
    assert (await ask(client, adapter="go"))["adapter"] == "base"
    chat = {"model": "go", "messages": [{"role": "user", "content": "x"}], "n": 2, "seed": 5}
    response = await client.post("/v1/chat/completions", json=chat)
    assert response.json()["model"] == response.headers["x-graft-adapter"] == "base"
    assert sorted(request.sampling.seed for request in engine.requests[-2:]) == [5, 6]
    streamed = await client.post("/api/predict", json={"adapter": "go", "text": "x", "stream": True})
    assert streamed.headers["x-graft-adapter"] == "base"
    assert '"adapter":"base"' in sse(streamed.text)[-1]["data"]
    await set_route(client, "go", ("de@1", 100), fallback=["de@2"])
    failed = await client.post("/api/predict", json={"adapter": "go", "text": "x"})
    assert (failed.status_code, failed.json()["code"]) == (500, "adapter-unloadable")
    assert (await ask(client, adapter="de@3"))["adapter"] == "de@3"


async def test_a_target_whose_state_is_broken_falls_back_too(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de", state={"source_language": 5})
    await set_route(client, "go", ("de@4", 100), fallback=["de@2"])
    assert (await ask(client, adapter="go"))["adapter"] == "de@2"


async def test_a_shadow_is_served_and_written_down_but_never_returned(
    client: httpx.AsyncClient, services: Services
) -> None:
    engine = engine_of(services)
    await set_route(client, "go", ("de@1", 100), shadow="de@2")
    assert (await ask(client, adapter="go"))["text"] == "de@1: x"
    await services.shadows.settled()
    engine.broken = {"de@2"}
    assert (await ask(client, adapter="go"))["text"] == "de@1: x"
    await services.shadows.settled()
    failed, served = (await client.get("/api/routes/go/shadow")).json()
    assert (served["adapter"], served["text"]) == ("de@1", "de@1: x")
    assert (served["shadow"], served["shadow_text"], served["error"]) == ("de@2", "de@2: x", None)
    assert served["request"]["text"] == "x"
    assert served["shadow_seconds"] > 0
    assert failed["shadow_text"] is None
    assert "its weights are gone" in failed["error"]
    assert len((await client.get("/api/routes/go/shadow?limit=1")).json()) == 1
    live = (await client.get("/api/routes/go")).json()["live"]
    assert [(figures["ref"], figures["requests"]) for figures in live] == [("de@1", 2)]


async def test_a_shadow_never_makes_the_caller_wait(client: httpx.AsyncClient, services: Services) -> None:
    engine = engine_of(services)
    await set_route(client, "go", ("de@1", 100), shadow="de@2")
    answer = engine.answer

    def slow(request: GenerateRequest) -> str:
        if request.adapter and request.adapter.ref == "de@2":
            engine.hold()
        return answer(request)

    engine.answer = slow
    assert (await asyncio.wait_for(ask(client, adapter="go"), 5))["adapter"] == "de@1"
    engine.release()
    await services.shadows.close()


def test_the_file_of_a_shadow_does_not_grow_for_ever(tmp_path: Path) -> None:
    shadows = Shadows(tmp_path / "shadows", file_bytes=2000)
    record = ShadowRecord.model_validate(
        {"time": "2026-01-02T03:04:05Z", "adapter": "de@1", "shadow": "de@2", "text": "x" * 100, "seconds": 1.0}
    )
    for number in range(100):
        shadows._write("go", record.model_copy(update={"text": str(number)}))
    assert sum(file.stat().st_size for file in (tmp_path / "shadows").iterdir()) < 5000
    kept = [int(found.text) for found in shadows.records("go", 100)]
    assert kept == list(range(99, 99 - len(kept), -1))
    assert len(kept) > 5


async def guarded(client: httpx.AsyncClient, **guard: Any) -> None:
    await set_route(client, "go", ("de@1", 60), ("de@2", 40), guard={"min_requests": 5, **guard})


async def weights(client: httpx.AsyncClient, services: Services) -> dict[str, float]:
    """Once what the guards have decided is carried out."""
    stop = services.guards._trip
    await stop.settled()
    spec = (await client.get("/api/routes/go")).json()["spec"]
    return {target["ref"]: target["weight"] for target in spec["targets"]}


async def test_a_canary_that_fails_loses_its_weight_and_it_is_told(
    client: httpx.AsyncClient, services: Services
) -> None:
    await guarded(client, max_error_rate=0.2)
    for _ in range(40):
        await client.post("/api/predict", json={"adapter": "go", "text": "x"})
    assert await weights(client, services) == {"de@1": 60, "de@2": 40}
    engine_of(services).broken = {"de@2"}
    codes = Counter()
    for _ in range(60):
        codes[(await client.post("/api/predict", json={"adapter": "go", "text": "x"})).status_code] += 1
        await asyncio.sleep(0)
    assert await weights(client, services) == {"de@1": 100, "de@2": 0}
    assert (await ask(client, adapter="go"))["adapter"] == "de@1"
    event, _ = (await client.get("/api/routes/go/history")).json()
    assert (event["kind"], event["who"]) == ("guard", "guard")
    assert event["why"].startswith("de@2: ")
    assert "failed, more than 20.0%" in event["why"]


async def test_a_canary_loses_its_weight_by_a_request_of_who_may_not_see_it(
    client: httpx.AsyncClient, services: Services
) -> None:
    services.registry.create_key("root", ["admin"])
    key = services.registry.create_key("web", ["query"], adapters=["go"])[1]
    services.keyring.changed()
    spec = RouteSpec.model_validate(
        {
            "targets": [{"ref": "de@1", "weight": 60}, {"ref": "de@2", "weight": 40}],
            "guard": {"min_requests": 5, "max_error_rate": 0.2},
        }
    )
    services.registry.routes.set("go", spec, who="root")
    engine_of(services).broken = {"de@2"}
    headers = {"Authorization": f"Bearer {key}"}
    assert (
        await client.post("/api/predict", json={"adapter": "de@2", "text": "x"}, headers=headers)
    ).status_code == 404
    for _ in range(60):
        await client.post("/api/predict", json={"adapter": "go", "text": "x"}, headers=headers)
    await services.guards._trip.settled()
    assert [target.weight for target in services.registry.routes.get("go").spec.targets] == [100, 0]


async def test_a_canary_fails_also_where_its_fallback_answers(client: httpx.AsyncClient, services: Services) -> None:
    await set_route(
        client, "go", ("de@1", 60), ("de@2", 40), fallback=["de@1"], guard={"min_requests": 5, "max_error_rate": 0.2}
    )
    engine_of(services).broken = {"de@2"}
    for _ in range(60):
        assert (await ask(client, adapter="go"))["adapter"] == "de@1"
    assert await weights(client, services) == {"de@1": 100, "de@2": 0}


async def test_a_metric_of_the_answers_is_watched(client: httpx.AsyncClient, services: Services) -> None:
    await guarded(client, metric="missing_placeholders", max_metric=0.5)
    engine_of(services).answer = lambda request: "gone" if request.adapter.ref == "de@2" else "{name}"
    for _ in range(60):
        await ask(client, adapter="go", text="Hi {name}")
    assert await weights(client, services) == {"de@1": 100, "de@2": 0}
    event, _ = (await client.get("/api/routes/go/history")).json()
    assert "the mean missing_placeholders of 5 requests in 300 s is 1, more than 0.5" in event["why"]


async def test_what_is_not_the_canarys_fault_counts_as_nothing(client: httpx.AsyncClient, services: Services) -> None:
    await guarded(client, max_error_rate=0.0)
    for _ in range(40):
        response = await client.post("/api/predict", json={"adapter": "go", "text": "word " * 1001})
        assert response.json()["code"] == "prompt-too-long"
    assert await weights(client, services) == {"de@1": 60, "de@2": 40}
    assert (await client.get("/api/routes/go")).json()["live"] == []


@pytest.mark.parametrize(
    ("guard", "told"),
    [
        ({}, "a guard needs a bound"),
        ({"metric": "confidence"}, "go together"),
        ({"min_metric": 0.5}, "go together"),
        ({"max_error_rate": 2}, "less than or equal to 1"),
    ],
)
async def test_a_guard_that_guards_nothing_is_refused(
    client: httpx.AsyncClient, guard: dict[str, Any], told: str
) -> None:
    spec = {"targets": [{"ref": "de@1", "weight": 100}], "guard": guard}
    response = await client.post("/api/routes/go", json={"spec": spec})
    assert (response.status_code, response.json()["code"]) == (422, "invalid-request")
    assert told in response.json()["detail"]


async def test_a_decision_is_explained_step_by_step(client: httpx.AsyncClient) -> None:
    async def explain(**body: Any) -> dict[str, Any]:
        response = await client.post("/api/explain", json={"text": "x", **body})
        assert response.status_code == 200, response.text
        return dict(response.json())

    await set_route(client, "translation", ("de@1", 90), ("de@2", 10), shadow="de@3", fallback=["base"])
    found = await explain(task="translation", key="ada")
    assert found["steps"][0] == "the request names task translation, which has a route"
    assert "route translation (revision 1) has de@1 90 %, de@2 10 %" in found["steps"]
    assert f"route translation chose {found['adapter']} by the caller's key" in found["steps"][2]
    assert found["steps"][-1] == f"{found['adapter']} answers as task translation"
    assert (found["fallback"], found["shadow"]) == (["base"], "de@3")
    assert (await ask(client, task="translation", key="ada"))["adapter"] == found["adapter"]
    assert (await explain(adapter="de@2"))["steps"] == ["'de@2' stands for de@2", "de@2 answers as task translation"]
    assert (await explain(adapter="base"))["steps"][0] == "the request names the base model"


async def test_gc_leaves_what_is_routed(client: httpx.AsyncClient) -> None:
    await set_route(client, "go", ("de@1", 100))
    plan = (await client.post("/api/gc", json={"keep": 1})).json()
    assert [version["ref"] for version in plan["deleted"]] == ["de@2"]
    assert plan["kept"][0]["kept_because"] == "is in route go"


async def test_models_list_the_routes(client: httpx.AsyncClient) -> None:
    await set_route(client, "go", ("de@1", 100))
    listed = {model["id"] for model in (await client.get("/v1/models")).json()["data"]}
    assert listed == {"tiny", "de", "de@1", "de@2", "de@3", "go"}
    async with client.stream("GET", "/v1/models/go") as response:
        assert response.status_code == 200
