"""The socket that the server listens on."""

from __future__ import annotations

import asyncio
import socket

from graft_server.http_server import bind, url_of


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
