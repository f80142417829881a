"""Log lines: human ones on a terminal, JSON in a pipe, with the request's id. Figures: few labels whatever is asked."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from graft_server.engine.base import EngineStats
from graft_server.observability import Metrics, configure_logging, request_id
from graft_server.services import Services
from support.serving import engine_of, in_memory, make_services, publish


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield
    root.handlers[:], root.level = before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def log_something(stream: io.StringIO, style: str = "auto") -> str:
    configure_logging("info", style, stream)
    token = request_id.set("r-1")
    try:
        try:
            raise KeyError("k")
        except KeyError:
            logging.getLogger("graft_server.x").warning("it is %s", "late", exc_info=True, extra={"seconds": 2})
    finally:
        request_id.reset(token)
    return stream.getvalue()


def test_json_in_a_pipe() -> None:
    line = json.loads(log_something(io.StringIO()))
    assert (line["level"], line["logger"], line["message"]) == ("warning", "graft_server.x", "it is late")
    assert (line["seconds"], line["request_id"]) == (2, "r-1")
    assert "KeyError" in line["exception"]


def test_plain_lines_on_a_terminal_or_when_told() -> None:
    for text in (log_something(Terminal()), log_something(io.StringIO(), "plain")):
        first = text.splitlines()[0]
        assert first.endswith("warning it is late  seconds=2 [r-1]")
        assert "KeyError" in text


def test_the_level_is_ours_alone() -> None:
    stream = io.StringIO()
    configure_logging("debug", "plain", stream)
    logging.getLogger("graft_server.x").debug("ours")
    logging.getLogger("somebody.else").info("theirs")
    assert "ours" in stream.getvalue()
    assert "theirs" not in stream.getvalue()


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = Metrics(adapters=1), Metrics(adapters=1)
    one.rejected.inc()
    assert "graft_rejected_total 1.0" in one.render().decode()
    assert "graft_rejected_total 0.0" in other.render().decode()


async def test_a_method_that_somebody_made_up_is_no_label(client: httpx.AsyncClient) -> None:
    await client.request("BREW", "/api/tasks")
    figures = (await client.get("/metrics")).text
    assert "BREW" not in figures
    assert 'method="other"' in figures


async def figures(client: httpx.AsyncClient) -> dict[str, dict[frozenset[str], float]]:
    """The values of each sample by the values of its labels."""
    found: dict[str, dict[frozenset[str], float]] = {}
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.values())] = sample.value
    return found


async def test_adapters_are_labels_by_name_as_far_as_there_is_room(tmp_path: Path) -> None:
    services = make_services(tmp_path, metrics_adapters=2)
    for name in ("de", "films", "films", "quiz"):
        publish(services, tmp_path, name)
    async with in_memory(services) as client:
        for name in ("de", "films@1", "films@2", "quiz", "base"):
            await client.post("/api/predict", json={"adapter": name, "text": "two words"})
        for name in ("nobody", "de@9", "films@x"):
            assert (await client.post("/api/predict", json={"adapter": name, "text": "x"})).status_code == 404
        found = await figures(client)
    services.registry.close()
    assert found["graft_adapter_predictions_total"] == {
        frozenset({"de", "ok"}): 1,
        frozenset({"films", "ok"}): 2,
        frozenset({"other", "ok"}): 1,
        frozenset({"base", "ok"}): 1,
    }
    assert found["graft_predictions_total"] == {frozenset({"ok"}): 5}
    assert found["graft_tokens_total"][frozenset({"completion"})] == sum(
        value for labels, value in found["graft_adapter_tokens_total"].items() if "completion" in labels
    )


async def test_times_are_those_of_requests_that_had_them(tmp_path: Path) -> None:
    services = make_services(tmp_path)
    async with in_memory(services) as client:
        await client.post("/api/predict", json={"adapter": "base", "text": "some words to say"})
        engine_of(services).unloadable = "no such file"
        publish(services, tmp_path, "de")
        refused = await client.post("/api/predict", json={"adapter": "de", "text": "x"})
        assert refused.status_code == 500
        found = await figures(client)
    services.registry.close()
    for name in ("time_to_first_token_seconds", "time_per_output_token_seconds", "request_seconds"):
        assert found[f"graft_{name}_count"][frozenset()] == 1
        assert 0 < found[f"graft_{name}_sum"][frozenset()] < 5
    assert found["graft_queue_seconds_count"][frozenset()] == 2
    assert frozenset({"de", "adapter-unloadable"}) in found["graft_adapter_predictions_total"]


async def test_a_scrape_does_not_wait_for_an_engine_that_hangs(
    client: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> EngineStats:
        await asyncio.sleep(60)
        return EngineStats()

    monkeypatch.setattr(services.engine, "stats", never)
    async with asyncio.timeout(5):
        found = await figures(client)
    assert found["graft_engine_running"][frozenset()] == 0
    assert found["graft_engine_stats_age_seconds"][frozenset()] > 0.5
