"""Pins over HTTP and over restarts: what is refused, what is restored, and what is told of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_server.engine.base import AdapterLoadError, AdapterSource, EngineUnavailableError
from graft_server.registry import UnknownError
from graft_server.services import Services
from support.scripted_engine import ScriptedEngine
from support.serving import engine_of, in_memory, make_services, publish

PIN = "/api/adapters/de/versions/1/pin"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Services]]:
    """``start()`` is a server over the same data folder each time."""
    started: list[Services] = []

    def make(**settings: Any) -> Services:
        started.append(make_services(tmp_path, ScriptedEngine(slots=3), max_slots=3, **settings))
        return started[-1]

    yield make
    for services in started:
        services.registry.close()


def pinned_in(services: Services) -> set[str]:
    return {source.ref for source in engine_of(services).pinned.values()}


async def pinned_of(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    pinned: list[dict[str, Any]] = (await client.get("/api/status")).json()["pinned"]
    return pinned


async def test_a_version_is_pinned_and_unpinned(client: httpx.AsyncClient, services: Services, tmp_path: Path) -> None:
    for _ in range(2):
        publish(services, tmp_path, "de")
    for _ in range(2):
        response = await client.post(PIN)
        assert (response.status_code, response.json()["ref"], response.json()["pinned"]) == (200, "de@1", True)
    [source] = engine_of(services).pinned.values()
    assert (source.ref, source.path) == ("de@1", str(services.registry.resolve("de@1").path))
    shown = (await client.get("/api/adapters/de")).json()
    assert [version["pinned"] for version in shown["versions"]] == [True, False]
    assert await pinned_of(client) == [{"ref": "de@1", "loaded": True, "error": None}]
    for _ in range(2):
        response = await client.delete(PIN)
        assert (response.status_code, response.json()["pinned"]) == (200, False)
    assert engine_of(services).pinned == {}
    assert await pinned_of(client) == []


async def test_one_slot_stays_free(client: httpx.AsyncClient, services: Services, tmp_path: Path) -> None:
    for number in range(4):
        publish(services, tmp_path, f"a{number}")
    for number in range(3):
        assert (await client.post(f"/api/adapters/a{number}/versions/1/pin")).status_code == 200
    refused = await client.post("/api/adapters/a3/versions/1/pin")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert refused.json()["detail"] == "a3@1 can't be pinned: only one slot is left"
    assert not services.registry.resolve("a3").pinned
    assert (await client.delete("/api/adapters/a0/versions/1/pin")).status_code == 200
    assert (await client.post("/api/adapters/a3/versions/1/pin")).status_code == 200


async def test_what_can_not_be_pinned_is_refused(client: httpx.AsyncClient, services: Services, tmp_path: Path) -> None:
    for method in ("POST", "DELETE"):
        response = await client.request(method, PIN)
        assert (response.status_code, response.json()["code"]) == (404, "unknown-adapter")
    publish(services, tmp_path, "de")
    engine_of(services).unloadable = "de@1: adapter_model.safetensors is damaged"
    response = await client.post(PIN)
    assert (response.status_code, response.json()["code"]) == (500, "adapter-unloadable")
    assert response.json()["detail"] == "de@1: adapter_model.safetensors is damaged"
    engine_of(services).state = "starting"
    assert (await client.post(PIN)).json()["code"] == "not-ready"
    assert not services.registry.resolve("de").pinned
    assert engine_of(services).pinned == {}


async def test_a_refused_pin_takes_no_slot_from_the_others(start: Callable[..., Services], tmp_path: Path) -> None:
    services = start()
    engine = engine_of(services)
    engine.unloadable = "damaged"
    for name in ("a", "b", "c"):
        publish(services, tmp_path, name)
        with pytest.raises(AdapterLoadError):
            await services.pins.pin(name, 1)
    engine.unloadable = None
    engine.hold()
    async with in_memory(services) as client:
        asked = [asyncio.create_task(client.post("/api/predict", json={"adapter": a, "text": "x"})) for a in "abc"]
        await engine.until(lambda engine: len(engine.running) == 3)
        engine.release()
        assert {response.status_code for response in await asyncio.gather(*asked)} == {200}


async def test_a_pinned_version_that_is_deleted_leaves_the_engine(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    ids = [publish(services, tmp_path, "de").engine_id for _ in range(2)]
    for number in (1, 2):
        await client.post(f"/api/adapters/de/versions/{number}/pin")
    # An engine that is being rebuilt would pin it again.
    engine_of(services).state = "rebuilding"
    assert (await client.delete("/api/adapters/de/versions/1")).status_code == 204
    assert engine_of(services).pinned.keys() == {ids[1]}
    engine_of(services).state = "ready"
    assert (await client.delete("/api/adapters/de")).status_code == 204
    assert engine_of(services).pinned == {}
    assert engine_of(services).unloaded == ids
    assert await pinned_of(client) == []


async def test_pins_are_restored_when_a_server_starts(start: Callable[..., Services], tmp_path: Path) -> None:
    before = start()
    for name in ("de", "fr", "es"):
        publish(before, tmp_path, name)
    await before.pins.pin("fr", 1)
    await before.pins.pin("de", 1)
    await before.pins.unpin("de", 1)
    await before.pins.pin("es", 1)
    after = start()
    assert pinned_in(after) == set()
    await after.pins.restore()
    assert pinned_in(after) == {"fr@1", "es@1"}
    assert after.pins.failures == {}


async def test_a_pin_that_can_not_be_restored_is_told_and_kept(
    start: Callable[..., Services], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = start()
    for name in ("de", "fr"):
        publish(before, tmp_path, name)
        await before.pins.pin(name, 1)
    after = start()
    engine = engine_of(after)
    load = engine.pin

    async def damaged(source: AdapterSource) -> None:
        if source.ref == "de@1":
            raise AdapterLoadError("de@1: adapter_model.safetensors is damaged")
        await load(source)

    engine.pin = damaged  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        await after.pins.restore()
    assert "the pinned version de@1 could not be loaded: de@1: adapter_model.safetensors is damaged" in caplog.text
    damage = {"ref": "de@1", "loaded": False, "error": "de@1: adapter_model.safetensors is damaged"}
    async with in_memory(after) as client:
        assert await pinned_of(client) == [damage, {"ref": "fr@1", "loaded": True, "error": None}]
        assert (await client.post(PIN)).status_code == 500
        assert (await pinned_of(client))[0] == damage
        engine.pin = load  # type: ignore[method-assign]
        assert (await client.post(PIN)).status_code == 200
        assert (await pinned_of(client))[0] == {"ref": "de@1", "loaded": True, "error": None}
    engine.pin = damaged  # type: ignore[method-assign]
    await after.pins.unpin("de", 1)
    assert after.pins.failures == {}


async def test_a_server_with_fewer_slots_restores_what_fits(start: Callable[..., Services], tmp_path: Path) -> None:
    before = start()
    for name in ("de", "fr"):
        publish(before, tmp_path, name)
        await before.pins.pin(name, 1)
    after = start()
    after.engine.capabilities = type(after.engine.capabilities)(  # type: ignore[misc]
        engine="scripted", methods=("lora",), max_rank=8, slots=2, constraints=(), device="cpu", dtype="float32"
    )
    await after.pins.restore()
    assert pinned_in(after) == {"de@1"}
    assert after.pins.failures == {"fr@1": "fr@1 can't be pinned: only one slot is left"}


async def test_a_version_that_goes_while_it_is_pinned_is_not_pinned(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(services, tmp_path, "de")
    load = engine_of(services).pin

    async def slow(source: AdapterSource) -> None:
        await asyncio.to_thread(services.registry.delete_version, "de", 1)
        await load(source)

    monkeypatch.setattr(engine_of(services), "pin", slow)
    with pytest.raises(UnknownError):
        await services.pins.pin("de", 1)
    assert engine_of(services).pinned == {}


async def test_a_version_is_pinned_and_unpinned_by_one_at_a_time(services: Services, tmp_path: Path) -> None:
    publish(services, tmp_path, "de")
    changes = (services.pins.pin, services.pins.unpin)
    for last in changes:
        await asyncio.gather(*(change("de", 1) for change in (*changes, *changes, last)))
        assert services.registry.resolve("de").pinned is bool(engine_of(services).pinned)


async def test_a_pin_that_fails_again_keeps_the_one_there_is(services: Services, tmp_path: Path) -> None:
    publish(services, tmp_path, "de")
    await services.pins.pin("de", 1)
    engine = engine_of(services)

    async def gone(source: AdapterSource) -> None:
        raise EngineUnavailableError("the server is stopping")

    engine.pin = gone  # type: ignore[method-assign]
    with pytest.raises(EngineUnavailableError):
        await services.pins.pin("de", 1)
    assert services.registry.resolve("de").pinned
    assert pinned_in(services) == {"de@1"}


async def test_a_pinned_adapter_is_let_in_while_the_others_share_what_is_left(
    start: Callable[..., Services], tmp_path: Path
) -> None:
    services = start()
    engine = engine_of(services)
    for name in ("a", "b", "c", "d"):
        publish(services, tmp_path, name)
    await services.pins.pin("d", 1)
    engine.hold()
    async with in_memory(services) as client:
        names = ("a", "b", "c", "d")
        asked = [asyncio.create_task(client.post("/api/predict", json={"adapter": n, "text": "x"})) for n in names]
        await engine.until(lambda engine: len(engine.running) == 3)
        await asyncio.sleep(0.01)
        inside = {request.adapter.ref for request in engine.requests if request.adapter}
        assert len(inside) == 3
        assert "d@1" in inside
        engine.release()
        assert {response.status_code for response in await asyncio.gather(*asked)} == {200}


async def test_what_is_waited_for_is_read_ahead_once(start: Callable[..., Services], tmp_path: Path) -> None:
    services = start()
    engine = engine_of(services)
    await services.pins.pin(publish(services, tmp_path, "x").adapter, 1)
    await services.pins.pin(publish(services, tmp_path, "y").adapter, 1)
    for name in ("a", "b"):
        publish(services, tmp_path, name)
    engine.hold()
    async with in_memory(services) as client:

        async def ask(name: str) -> int:
            return (await client.post("/api/predict", json={"adapter": name, "text": "x"})).status_code

        asked = [asyncio.create_task(ask("a"))]
        await engine.until(lambda engine: len(engine.running) == 1)
        asked += [asyncio.create_task(ask(name)) for name in ("b", "b", "b", "a", "base")]
        while services.predictor.queued < 3:
            await asyncio.sleep(0.001)
        assert [source.ref for source in engine.prefetched] == ["b@1"]
        engine.release()
        assert set(await asyncio.gather(*asked)) == {200}
    assert [source.ref for source in engine.prefetched] == ["b@1"]
