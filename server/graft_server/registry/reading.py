"""Reading stored files from an event loop: what has to be fetched from an object store first is waited for here, and
not in the threads that everybody shares, so that a slow or silent store delays only who needs it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

from graft_server.registry.errors import NotFetchedError, RegistryError
from graft_server.registry.registry import Registry, Stored

T = TypeVar("T")
P = ParamSpec("P")


async def hold(registry: Registry, *records: Stored) -> ExitStack:
    """Have the files of versions or datasets at hand until what is returned is closed.

    Raises:
        RegistryError: as ``Registry.files``.
    """
    with ExitStack() as stack:
        for record in records:
            while True:
                try:
                    stack.enter_context(registry.files(record, wait=False))
                    break
                except NotFetchedError as missing:
                    await _fetched(registry, missing)
        return stack.pop_all()


async def with_files(registry: Registry, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``call`` gives in a thread; it is called anew once the files that it misses are here.

    Raises:
        RegistryError: as ``Registry.files``.
    """
    while True:
        try:
            return await asyncio.to_thread(call, *args, **kwargs)
        except NotFetchedError as missing:
            await _fetched(registry, missing)


async def _fetched(registry: Registry, missing: NotFetchedError) -> None:
    # What went wrong is told to whoever asks for the files next, which is the one who missed them.
    with contextlib.suppress(RegistryError):
        await asyncio.shield(asyncio.wrap_future(registry.fetch(missing)))
