"""Servers of one registry notice each other, and say what they can't share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from graft_server.registry import Registry
from graft_server.registry.errors import UnavailableError
from graft_server.services import Services
from graft_server.serving import presence as presence_module
from graft_server.serving.presence import Presence
from support.serving import in_memory, make_services, publish
from support.waiting import until


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_module, "_PAUSE", 0.02)
    monkeypatch.setattr(presence_module, "_LOOK", 0.05)


@pytest.fixture
def elsewhere(services: Services, tmp_path: Path) -> Iterator[Registry]:
    """The registry as another server has it open."""
    opened = Registry.open(tmp_path / "elsewhere", f"sqlite:///{services.settings.data_dir / 'registry.db'}")
    yield opened
    opened.close()


async def test_servers_that_share_no_files_say_so(
    services: Services, elsewhere: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    running = asyncio.create_task(services.presence.run())
    await until(lambda: elsewhere.other_servers() == {services.registry.server})
    async with in_memory(services) as client:

        async def told() -> tuple[int, list[str]]:
            document = (await client.get("/api/status")).json()
            return document["servers"], document["warnings"]

        assert await told() == (1, [])
        elsewhere.report_in_flight(set())
        await until(lambda: services.presence.servers == 2)
        servers, (warning,) = await told()
        assert servers == 2
        assert "`artefacts_url` is not set" in warning
        assert "GRAFT_ARTEFACTS_URL" in warning
        assert caplog.text.count("`artefacts_url` is not set") == 1
        # Whoever may see only some adapters is not told how the servers are run.
        services.registry.create_key("root", ["admin"])
        key = services.registry.create_key("web", ["query"], adapters=["de"])[1]
        services.keyring.changed()
        document = (await client.get("/api/status", headers={"Authorization": f"Bearer {key}"})).json()
        assert document["warnings"] == []
    elsewhere.leave()
    await until(lambda: services.presence.servers == 1)
    assert services.presence.warnings == []
    running.cancel()
    await services.presence.leave()
    assert elsewhere.other_servers() == set()


async def test_what_the_warning_says_is_so(services: Services, elsewhere: Registry, tmp_path: Path) -> None:
    published = publish(services, tmp_path, "de")
    assert not elsewhere.resolve("de").path.is_dir()
    assert published.path.is_dir()
    dataset = services.registry.add_dataset(
        task="translation", format="jsonl", rows=1, bad_rows=0, folder=published.path
    )
    services.registry.create_job(task="translation", adapter="de", dataset=dataset.id, method="lora", options={})
    assert elsewhere.claim_job() is None
    assert services.registry.claim_job() is not None


async def test_servers_that_share_their_files_need_no_warning(tmp_path: Path) -> None:
    services = make_services(tmp_path, artefacts_url=(tmp_path / "shared").as_uri())
    url = f"sqlite:///{services.settings.data_dir / 'registry.db'}"
    other = Registry.open(tmp_path / "elsewhere", url, (tmp_path / "shared").as_uri())
    other.report_in_flight(set())
    running = asyncio.create_task(services.presence.run())
    await until(lambda: services.presence.servers == 2)
    assert services.presence.warnings == []
    running.cancel()
    other.close()
    services.registry.close()


async def test_no_error_ends_the_telling(
    services: Services, elsewhere: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, asked = services.registry.report_in_flight, []

    def broken_once(refs: set[str]) -> None:
        asked.append(refs)
        if len(asked) == 1:
            raise ValueError("a bug")
        report(refs)

    monkeypatch.setattr(services.registry, "report_in_flight", broken_once)
    running = asyncio.create_task(services.presence.run())
    await until(lambda: elsewhere.other_servers() == {services.registry.server})
    running.cancel()


async def test_an_outage_of_the_database_makes_nobody_vanish(
    services: Services, elsewhere: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []
    presence = Presence(services.registry, services.predictor.traffic, numbers.append)
    elsewhere.report_in_flight(set())
    running = asyncio.create_task(presence.run())
    await until(lambda: numbers == [2])
    asked: list[int] = []

    def away() -> set[str]:
        asked.append(1)
        raise UnavailableError("db")

    monkeypatch.setattr(services.registry, "other_servers", away)
    await until(lambda: bool(asked))
    # It is back, and nobody has told anything yet.
    monkeypatch.setattr(services.registry, "other_servers", lambda: asked.append(2) or set())
    await until(lambda: asked.count(2) > 2)
    assert (numbers, presence.servers) == ([2], 2)
    running.cancel()
