"""Log lines: human ones on a terminal, JSON in a pipe, with the request's id."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import httpx
import pytest

from graft_server.observability import Metrics, configure_logging, request_id


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
    one, other = Metrics(), Metrics()
    one.rejected.inc()
    assert "graft_rejected_total 1.0" in one.render().decode()
    assert "graft_rejected_total 0.0" in other.render().decode()


async def test_a_method_that_somebody_made_up_is_no_label(client: httpx.AsyncClient) -> None:
    await client.request("BREW", "/api/tasks")
    figures = (await client.get("/metrics")).text
    assert "BREW" not in figures
    assert 'method="other"' in figures
