"""The socket that the server listens on."""

from __future__ import annotations

import asyncio
import socket

from graft_server.http_server import bind, url_of
from graft_server.services import Services
from support.serving import on_socket


async def test_small_writes_are_sent_at_once() -> None:
    """Else the first token of an answer on a connection that was used before is 40 ms late."""
    without_delay = asyncio.get_running_loop().create_future()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        without_delay.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with bind("127.0.0.1", 0) as bound:
        async with await asyncio.start_server(answer, sock=bound):
            host, port = bound.getsockname()
            assert url_of(bound) == f"http://{host}:{port}"
            _, writer = await asyncio.open_connection(host, port)
            assert await without_delay
            writer.close()


async def test_a_connection_is_kept_longer_than_clients_keep_theirs(services: Services) -> None:
    """httpx ends one after 5 s without a request; did the server so too, a request could meet the end of its own."""
    async with on_socket(services) as (client, _):
        address = client.base_url
        reader, writer = await asyncio.open_connection(address.host, address.port)
        for pause in (5.5, 0):
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            length = next(int(line[15:]) for line in head.lower().splitlines() if line.startswith(b"content-length:"))
            await reader.readexactly(length)
            await asyncio.sleep(pause)
        writer.close()
