"""Old versions go by themselves, but for those that anything needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from graft_server.registry import Registry
from graft_server.services import Services
from graft_server.serving.presence import Presence
from graft_server.serving.retention import Retention
from support.serving import engine_of, in_memory, publish


def versions(registry: Registry, name: str) -> list[int]:
    return [version.version for version in registry.adapter(name).versions]


def retention(services: Services, *, days: float = 0.0) -> asyncio.Task[None]:
    tidy = Retention(services.registry, services.cleaner, keep=2, days=days, interval=timedelta(seconds=0.2))
    return asyncio.create_task(tidy.run())


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.02)


async def test_what_nothing_needs_goes(services: Services, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for _ in range(6):
        publish(services, tmp_path, "de")
    services.registry.aliases.promote("de", "production", 2, seen=None, who="ada")
    await services.pins.pin("de", 3)
    tidying = retention(services)
    await until(lambda: "retention: deleted de@1, de@4" in caplog.text)
    assert versions(services.registry, "de") == [2, 3, 5, 6]
    # And again, when there is more.
    publish(services, tmp_path, "de")
    await until(lambda: versions(services.registry, "de") == [2, 3, 6, 7])
    tidying.cancel()


async def test_young_versions_stay(services: Services, tmp_path: Path) -> None:
    for _ in range(4):
        publish(services, tmp_path, "de")
    tidying = retention(services, days=1)
    await asyncio.sleep(0.5)
    assert versions(services.registry, "de") == [1, 2, 3, 4]
    tidying.cancel()


async def test_what_another_server_answers_with_stays_until_it_has_answered(services: Services, tmp_path: Path) -> None:
    for _ in range(3):
        publish(services, tmp_path, "de")
    engine = engine_of(services)
    engine.hold()
    elsewhere = Registry.open(tmp_path / "elsewhere", f"sqlite:///{services.settings.data_dir / 'registry.db'}")
    telling = asyncio.create_task(Presence(services.registry, services.predictor.traffic).run())
    async with in_memory(services) as client:
        asking = asyncio.create_task(client.post("/api/predict", json={"adapter": "de@1", "text": "hi"}))
        await engine.until(lambda e: len(e.running) == 1)
        await until(lambda: elsewhere.in_flight_elsewhere() == {"de@1"})
        engine.release()
        assert (await asking).status_code == 200
    await until(lambda: elsewhere.in_flight_elsewhere() == set())
    telling.cancel()
    elsewhere.close()
