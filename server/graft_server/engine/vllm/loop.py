"""The vLLM engine's event loop: messages from the server, for as long as it is there."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from graft_server.engine import messages
from graft_server.engine.vllm.engine import VllmEngine

#: Seconds between two looks at the engine's books, where it is at rest.
_CHECK_EVERY = 1.0


class Checks(Protocol):
    def at_rest(self) -> None: ...


async def run(
    engine: VllmEngine,
    inbox: queue.SimpleQueue[messages.ToEngine | None],
    handle: Callable[[messages.ToEngine], None],
    checks: Checks,
) -> None:
    """Until the server closes the socket."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def pump() -> None:
        while (message := inbox.get()) is not None:
            loop.call_soon_threadsafe(handle, message)
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=pump, name="pump", daemon=True).start()
    watching = asyncio.create_task(engine.watch())
    while not ended.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), _CHECK_EVERY)
        if engine.idle:
            checks.at_rest()
    watching.cancel()
