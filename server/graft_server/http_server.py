"""uvicorn with a drain: the first signal ends the taking of requests, those in flight finish, then it stops."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from graft_client.errors import GraftError
from graft_server.lifecycle import Lifecycle

log = logging.getLogger(__name__)


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not listen yet; port 0 takes a free one.

    Raises:
        GraftError: the port is in use, or the address is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sets TCP_NODELAY only where the protocol is named; without it each first token on a connection that
        # is used again waits 40 ms for the client's delayed acknowledgement.
        bound = socket.socket(family, kind, protocol)
        # A server that has just stopped leaves its port in TIME_WAIT, which must not stop the next one.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
            # Listening at once is what makes a second server's bind fail.
            bound.listen(2048)
        except BaseException:
            bound.close()
            raise
    except socket.gaierror as error:
        raise GraftError(f"there is no address {host!r} to listen on: {error.strerror}") from error
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"can't be opened: {error.strerror}"
        raise GraftError(f"port {port} on {host} {reason}; choose another with --port") from error
    bound.setblocking(False)
    return bound


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, in which a request costs the server less of a core; asyncio's where there is no uvloop: on Windows."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def url_of(bound: socket.socket) -> str:
    """Where a client on this machine reaches a bound socket."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1" if bound.family == socket.AF_INET else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(bound: socket.socket) -> bool:
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


class HttpServer(uvicorn.Server):
    """Serves an application until a signal, then drains. A second signal stops it at once."""

    def __init__(
        self,
        app: FastAPI,
        lifecycle: Lifecycle,
        *,
        drain_seconds: float,
        on_listening: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                # Longer than clients keep theirs (most 5 to 60 s): a connection that both end at the same moment costs
                # the client the request that it sends on it just then.
                timeout_keep_alive=75,
                # What is still in flight after the drain has had its time.
                timeout_graceful_shutdown=1,
            )
        )
        self._lifecycle = lifecycle
        self._drain_seconds = drain_seconds
        self._on_listening = on_listening
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._on_listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler. uvicorn would raise the signal again at the end; a drained server ends with 0."""
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Begin to stop; the second time, stop at once."""
        if self._lifecycle.draining:
            log.warning("stopping at once; %d requests are cut off", self._lifecycle.in_flight)
            self.should_exit = self.force_exit = True
            return
        log.info("draining %d requests; a second signal stops at once", self._lifecycle.in_flight)
        self._lifecycle.drain()
        self._draining = asyncio.create_task(self._finish())

    async def _finish(self) -> None:
        if not await self._lifecycle.wait_idle(self._drain_seconds):
            log.warning(
                "%d requests still in flight after %g s are cut off",
                self._lifecycle.in_flight,
                self._drain_seconds,
            )
        self.should_exit = True
