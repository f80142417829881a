"""Waiting in the event loop for what comes soon, without saying when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(holds: Callable[[], object], *, within: float = 20.0) -> None:
    """Wait until ``holds`` does. ``within`` seconds is for noticing that it never will, not a bound on the speed.

    Raises ``TimeoutError``.
    """
    async with asyncio.timeout(within):
        while not holds():
            await asyncio.sleep(0.01)
