"""Stopping: requests in flight finish, new ones are told to come back, a second signal cuts everything off."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import httpx
import pytest

from graft_client.errors import GraftError
from graft_server.http_server import bind, is_loopback, url_of
from graft_server.instance import claimed, write_note
from graft_server.services import Services
from support.serving import engine_of, make_services, on_socket

BODY = {"adapter": "base", "text": "x"}


async def test_a_drain_finishes_what_is_in_flight_and_refuses_the_rest(services: Services) -> None:
    engine = engine_of(services)
    engine.hold()
    async with on_socket(services) as (client, server):
        in_flight = asyncio.create_task(client.post("/api/predict", json=BODY))
        await engine.until(lambda engine: len(engine.running) == 1)
        server.drain()
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert (await client.get("/health/live")).status_code == 200
        for path in ("/api/predict", "/v1/completions"):
            refused = await client.post(path, json={})
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert refused.headers["connection"] == "close"
        assert not server.should_exit
        engine.release()
        assert (await in_flight).status_code == 200
        async with asyncio.timeout(10):
            await server._draining
        assert server.should_exit


async def test_a_drain_ends_after_its_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    services = make_services(tmp_path, drain_seconds=0.05)
    engine = engine_of(services)
    engine.hold()
    async with on_socket(services) as (client, server):
        in_flight = asyncio.create_task(client.post("/api/predict", json=BODY))
        await engine.until(lambda engine: len(engine.running) == 1)
        with caplog.at_level(logging.WARNING):
            server.drain()
            await server._draining
        assert server.should_exit
        assert "1 requests still in flight" in caplog.text
    with pytest.raises(httpx.HTTPError):
        (await in_flight).raise_for_status()
    assert not engine.running
    services.registry.close()


async def test_a_second_signal_stops_at_once(services: Services) -> None:
    engine = engine_of(services)
    engine.hold()
    async with on_socket(services) as (client, server):
        in_flight = asyncio.create_task(client.post("/api/predict", json=BODY))
        await engine.until(lambda engine: len(engine.running) == 1)
        server.handle_exit(15, None)
        server.handle_exit(15, None)
        await asyncio.sleep(0)
        assert server.force_exit
        in_flight.cancel()


async def test_job_events_do_not_hold_up_a_drain(services: Services) -> None:
    folder = services.settings.data_dir / "rows"
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"source": "a", "target": "b"}\n')
    registry = services.registry
    dataset = registry.add_dataset(task="translation", format="jsonl", rows=1, bad_rows=0, folder=folder)
    job = registry.create_job(task="translation", adapter="de", dataset=dataset.id, method="lora", options={})
    async with (
        on_socket(services) as (client, server),
        client.stream("GET", f"/api/jobs/{job.id}/events") as response,
    ):
        lines = response.aiter_lines()
        await anext(lines)
        server.drain()
        async with asyncio.timeout(10):
            async for _ in lines:
                pass
            await server._draining


def test_a_port_in_use_is_told_in_one_sentence() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(GraftError, match=f"port {port} on 127.0.0.1 is in use; choose another with --port"):
            bind("127.0.0.1", port)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(GraftError, match=r"192\.0\.2\.1"):
        bind("192.0.2.1", 0)


def test_port_0_has_a_real_url() -> None:
    with bind("127.0.0.1", 0) as bound:
        assert url_of(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert is_loopback(bound)
    with bind("0.0.0.0", 0) as bound:
        assert url_of(bound).startswith("http://127.0.0.1:")
        assert not is_loopback(bound)


def test_one_server_a_data_folder(tmp_path: Path) -> None:
    with claimed(tmp_path):
        write_note(tmp_path, "http://127.0.0.1:8000")
        with (
            pytest.raises(GraftError, match=r"http://127.0.0.1:8000\) already runs on .*--data-dir"),
            claimed(tmp_path),
        ):
            pass
        assert (tmp_path / "server.json").exists()
    assert not (tmp_path / "server.json").exists()
    with claimed(tmp_path):
        pass


def test_a_data_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GraftError, match="can't be used as data folder"), claimed(tmp_path / "file"):
        pass
