"""Connections for a load generator: one for each request in flight, found in constant time.

httpcore's pool looks at all its connections for each of them whenever a request begins or ends. With 64 requests at
once that is more work than the server's own for their answers, and on the machine that is measured as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from graft_client._transport import http_options


def connections(url: str, api_key: str | None, timeout: float) -> httpx.AsyncClient:
    """A client that has as many connections to a server as there are requests at once; ``timeout`` in seconds."""
    options = http_options(url, timeout, api_key)
    # A request that waited for a connection of ours would be timed as if the server were slow.
    options["timeout"] = httpx.Timeout(timeout)
    proxy = _proxy_of(url) if options["trust_env"] else None
    context = httpx.create_ssl_context(trust_env=options["trust_env"])
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)

    def connection() -> httpx.AsyncBaseTransport:
        return httpx.AsyncHTTPTransport(verify=context, limits=limits, proxy=proxy)

    return httpx.AsyncClient(transport=ConnectionStack(connection), **options)


class ConnectionStack(httpx.AsyncBaseTransport):
    """Sends each request over a transport that no other request uses; the one that was used last comes first."""

    def __init__(self, new: Callable[[], httpx.AsyncBaseTransport]) -> None:
        self._new = new
        self._free: list[httpx.AsyncBaseTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        transport = self._free.pop() if self._free else self._new()
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            await transport.aclose()
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Returned(response.stream, lambda: self._free.append(transport))
        return response

    async def aclose(self) -> None:
        while self._free:
            await self._free.pop().aclose()


class _Returned(httpx.AsyncByteStream):
    """A response's bytes; when it is closed, its connection is free again."""

    def __init__(self, stream: httpx.AsyncByteStream, give_back: Callable[[], None]) -> None:
        self._stream = stream
        self._give_back = give_back
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield part

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await self._stream.aclose()
            self._give_back()


def _proxy_of(url: str) -> str | None:
    """The proxy that the environment names for a URL; httpx asks for it only where the transport is its own."""
    address = urlsplit(url)
    proxies = getproxies()
    proxy = None if proxy_bypass(address.hostname or "") else proxies.get(address.scheme) or proxies.get("all")
    # As httpx does with its own: many name a host and a port alone.
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"
