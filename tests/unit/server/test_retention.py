"""Old versions go by themselves, but for those that anything needs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import openai
import pytest

from graft_server.registry import Registry, documents
from graft_server.registry.models import now
from graft_server.services import Services
from graft_server.serving import retention as retention_module
from graft_server.serving.presence import Presence
from graft_server.serving.retention import ResponseRetention, Retention
from support.openai_sdk import openai_sdk
from support.serving import engine_of, in_memory, publish
from support.waiting import until


def versions(registry: Registry, name: str) -> list[int]:
    return [version.version for version in registry.adapter(name).versions]


def retention(services: Services, *, days: float = 0.0) -> asyncio.Task[None]:
    tidy = Retention(services.registry, services.cleaner, keep=2, days=days, interval=timedelta(seconds=0.2))
    return asyncio.create_task(tidy.run())


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


async def test_kept_responses_go_when_they_are_old(
    services: Services, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(retention_module, "_RESPONSES", 2)
    async with openai_sdk(services) as sdk:
        create, retrieve = sdk.asynchronous.responses.create, sdk.asynchronous.responses.retrieve
        monkeypatch.setattr(documents, "now", lambda: now() - timedelta(days=31))
        old = [(await create(model="base", input=f"old {n}")).id for n in range(5)]
        monkeypatch.setattr(documents, "now", now)
        young = (await create(model="base", input="young", previous_response_id=old[0])).id
        tidy = ResponseRetention(services.registry, age=timedelta(days=30), interval=timedelta(seconds=0.2))
        tidying = asyncio.create_task(tidy.run())
        await until(lambda: "retention: deleted 5 kept responses" in caplog.text)
        for identity in old:
            with pytest.raises(openai.NotFoundError, match="no response"):
                await retrieve(identity)
        # It goes on with what was said in one that is gone.
        assert (await retrieve(young)).output_text == "base: young"
        after = await create(model="base", input="and?", previous_response_id=young)
        request = engine_of(services).requests[-1]
        assert [message.content for message in request.prompt.messages] == [
            *("old 0", "base: old 0", "young", "base: young", "and?")
        ]
        # And again, when there is more.
        monkeypatch.setattr(documents, "now", lambda: now() + timedelta(days=31))
        await until(lambda: "retention: deleted 2 kept responses" in caplog.text)
        monkeypatch.setattr(documents, "now", now)
        for identity in (young, after.id):
            with pytest.raises(openai.NotFoundError, match="no response"):
                await retrieve(identity)
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
