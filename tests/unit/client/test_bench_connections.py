"""The connections of ``graft bench``."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest

from graft_client.bench.connections import ConnectionStack, connections
from unit.client.little_server import Answer, Asked, LittleServer


async def test_each_request_in_flight_has_a_connection_and_the_next_ones_use_it_again(server: LittleServer) -> None:
    at_once = 8
    together = threading.Barrier(at_once, timeout=10)

    def when_all_are_here(_: Asked) -> Answer:
        together.wait()
        return Answer(pieces=[b"here"])

    server.on("GET", "/", when_all_are_here)
    made = []

    def connection() -> httpx.AsyncBaseTransport:
        made.append(httpx.AsyncHTTPTransport())
        return made[-1]

    async with httpx.AsyncClient(base_url=server.url, transport=ConnectionStack(connection)) as http:
        for _ in range(3):
            answers = await asyncio.gather(*(http.get("/") for _ in range(at_once)))
            assert [answer.text for answer in answers] == ["here"] * at_once
    assert len(made) == at_once


async def test_a_connection_that_broke_is_not_used_again(server: LittleServer) -> None:
    server.on("GET", "/broken", Answer(pieces=[b"half"], breaks=True))
    server.on("GET", "/whole", Answer(pieces=[b"whole"]))
    async with connections(server.url, None, 10) as http:
        for _ in range(2):
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get("/broken")
            assert (await http.get("/whole")).text == "whole"


@pytest.mark.parametrize("scheme", ["http://", ""])
async def test_another_machine_is_asked_through_the_proxy_of_the_environment(
    server: LittleServer, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    server.on("GET", "/", Answer(pieces=[b"by proxy"]))
    monkeypatch.setenv("http_proxy", scheme + server.url.removeprefix("http://"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with connections("http://elsewhere.invalid", "key", 10) as http:
        assert (await http.get("http://elsewhere.invalid/")).text == "by proxy"
    assert server.asked[-1].headers["authorization"] == "Bearer key"
    monkeypatch.setenv("no_proxy", "elsewhere.invalid")
    async with connections("http://elsewhere.invalid", None, 10) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("/")
