"""Two servers of one registry with an object store: what one has published, the other serves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graft_client.schemas.routes import RouteSpec, RouteTarget
from graft_server.registry.objects import ObjectStore
from graft_server.services import Services
from support.object_stores import S3Server, s3_server
from support.serving import engine_of, in_memory, make_services, publish


@pytest.fixture
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def pair(tmp_path: Path, server: S3Server) -> Iterator[tuple[Services, Services]]:
    settings = {"database_url": f"sqlite:///{tmp_path / 'registry.db'}", "artefacts_url": server.new_url()}
    pair = make_services(tmp_path / "a", **settings), make_services(tmp_path / "b", **settings)
    yield pair
    for services in pair:
        services.registry.close()


def asking(adapter: str) -> dict[str, object]:
    return {"adapter": adapter, "input": {"text": "Hello"}}


async def test_the_engine_finds_the_files_of_what_another_server_has_published(pair, tmp_path):
    first, second = pair
    version = publish(first, tmp_path, "de", state={"target_language": "German"})
    seen = []
    generate = engine_of(second).generate

    def looking(request):
        seen.append(sorted(file.name for file in Path(request.adapter.path).iterdir()))
        return generate(request)

    engine_of(second).generate = looking
    async with in_memory(second) as client:
        for path, body in (
            ("/api/predict", asking("de")),
            ("/v1/chat/completions", {"model": "de", "messages": [{"role": "user", "content": "Hello"}]}),
        ):
            answer = await client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            assert answer.headers["X-Graft-Adapter"] == version.ref
        assert seen == [["adapter_config.json", "adapter_model.safetensors", "task_state.json"]] * 2
        assert (await client.get("/api/adapters/de/archive")).status_code == 200
        assert (await client.get("/api/adapters/de/bundle")).status_code == 200
        assert (await client.post("/api/adapters/de/versions/1/pin")).status_code == 200
        promoted = await client.post("/api/adapters/de/aliases/production", json={"version": 1})
        assert promoted.status_code == 200, promoted.text


async def test_without_the_store_what_is_cached_answers_and_the_rest_is_told(pair, tmp_path, server, monkeypatch):
    first, second = pair
    for name in ("known", "unknown"):
        publish(first, tmp_path, name)
    spec = RouteSpec(targets=[RouteTarget(ref="unknown@1", weight=100)], fallback=["known@1"])
    first.registry.routes.set("safe", spec, who="me")

    async with in_memory(second) as client:
        assert (await client.post("/api/predict", json=asking("known"))).status_code == 200
        server.stop()
        silent, fetch = threading.Event(), ObjectStore.fetch

        def waiting_long(self: ObjectStore, *arguments: Any) -> None:
            silent.wait(20)
            fetch(self, *arguments)

        monkeypatch.setattr(ObjectStore, "fetch", waiting_long)
        # More than there are threads: whoever waits for the store waits for it alone.
        waiting = asyncio.gather(*(client.post("/api/predict", json=asking("unknown")) for _ in range(40)))
        await asyncio.sleep(0.1)
        assert (await client.post("/api/predict", json=asking("known"))).status_code == 200
        assert not waiting.done()
        silent.set()
        for refused in await waiting:
            assert refused.status_code == 503
            assert refused.json()["code"] == "artefacts-unavailable"
            assert refused.headers["Retry-After"]
        instead = await client.post("/api/predict", json=asking("safe"))
        assert (instead.status_code, instead.headers["X-Graft-Adapter"]) == (200, "known@1")


async def test_nobody_waits_for_the_files_of_a_shadow_or_a_fallback(pair, tmp_path, monkeypatch):
    first, second = pair
    for name in ("known", "unknown"):
        publish(first, tmp_path, name, state={"target_language": "German"})
    targets = [RouteTarget(ref="known@1", weight=100)]
    first.registry.routes.set("shadowed", RouteSpec(targets=targets, shadow="unknown@1"), who="me")
    first.registry.routes.set("safe", RouteSpec(targets=targets, fallback=["unknown@1"]), who="me")
    async with in_memory(second) as client:
        assert (await client.post("/api/predict", json=asking("known"))).status_code == 200
        silent, fetch = threading.Event(), ObjectStore.fetch

        def waiting_long(self: ObjectStore, *arguments: Any) -> None:
            silent.wait(20)
            fetch(self, *arguments)

        monkeypatch.setattr(ObjectStore, "fetch", waiting_long)
        for route in ("shadowed", "safe"):
            answer = await client.post("/api/predict", json={**asking(route), "timeout": 10})
            assert (answer.status_code, answer.headers["X-Graft-Adapter"]) == (200, "known@1")
        silent.set()
        await second.shadows.settled()
        (record,) = (await client.get("/api/routes/shadowed/shadow")).json()
        assert (record["shadow"], record["error"]) == ("unknown@1", None)


@pytest.mark.parametrize("path", ["/api/predict", "/v1/chat/completions"])
async def test_the_time_of_a_request_is_over_also_while_files_are_fetched(pair, tmp_path, monkeypatch, path):
    first, second = pair
    publish(first, tmp_path, "unknown", state={"target_language": "German"})
    silent = threading.Event()
    monkeypatch.setattr(ObjectStore, "fetch", lambda *arguments: silent.wait(20))
    body = {"model": "unknown", "messages": [{"role": "user", "content": "Hello"}]}
    body = {**asking("unknown"), "timeout": 0.3} if path == "/api/predict" else body
    async with in_memory(second) as client:
        asked = asyncio.get_running_loop().time()
        answer = await client.post(path, json=body, headers={"X-Graft-Timeout": "0.3"})
        assert answer.status_code == 504, answer.text
        assert "files of its adapter" in answer.text
        assert asyncio.get_running_loop().time() - asked < 10
    silent.set()
