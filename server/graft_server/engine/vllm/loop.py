"""The vLLM engine's event loop: messages from the server in, and the deltas of one round of it out together."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
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
    flush: Callable[[], None],
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
    due = time.monotonic()
    while not ended.is_set():
        flush()
        if engine.idle and time.monotonic() >= due:
            checks.at_rest()
            due = time.monotonic() + _CHECK_EVERY
        await asyncio.sleep(0.002 if not engine.idle else 0.02)
    watching.cancel()
