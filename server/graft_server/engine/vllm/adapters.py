"""Adapters on their way into vLLM's slots, by our books: vLLM's own would evict one that is decoding.

Files are read and checked in a thread beside the steps, which also leaves them in the page cache; vLLM is then told to
load, one adapter at a time. An adapter in use, or pinned, is never displaced. One event loop owns this.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from graft_server.engine.base import LOAD_SECONDS, AdapterLoadError, AdapterSource, EngineError
from graft_server.engine.integrity import require
from graft_server.engine.slots import Slots
from graft_server.metrics.buckets import Buckets


class AdapterSlots:
    """``check`` reads a version's files and raises what is wrong with them; ``add`` and ``remove`` tell vLLM.

    At most ``host_capacity`` versions are in vLLM's host memory; it must be larger than the number of slots.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        host_capacity: int,
        check: Callable[[AdapterSource], None],
        add: Callable[[AdapterSource], Awaitable[None]],
        remove: Callable[[int], Awaitable[None]],
    ) -> None:
        self.slots = slots
        self.loads = Buckets(LOAD_SECONDS)
        self._host_capacity = host_capacity
        self._check = check
        self._add = add
        self._remove = remove
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adapter-reader")
        self._one_at_a_time = asyncio.Lock()
        self._freed = asyncio.Event()
        self._refs: dict[int, str] = {}
        #: Versions that have been read, least recently used first.
        self._read: OrderedDict[int, None] = OrderedDict()
        self._reading: dict[int, asyncio.Task[None]] = {}
        self._loading: dict[int, asyncio.Task[None]] = {}
        self._waiters: dict[int, list[asyncio.Future[None]]] = {}
        self._leaving: set[int] = set()
        self._removals: set[asyncio.Future[None]] = set()

    @property
    def loaded(self) -> tuple[str, ...]:
        return tuple(self._refs[i] for i in self.slots.ids() if i in self._refs)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiters.values()))

    @property
    def busy(self) -> bool:
        """An adapter is being read or loaded."""
        return bool(self._reading) or bool(self._loading)

    async def settled(self) -> None:
        """Wait until nothing is being read or loaded."""
        while tasks := [*self._reading.values(), *self._loading.values()]:
            await asyncio.wait(tasks)

    async def acquire(self, source: AdapterSource) -> None:
        """Use a version from now on; waits until it has a slot.

        Raises:
            AdapterLoadError: its files can't be loaded.
        """
        engine_id = source.engine_id
        self._leaving.discard(engine_id)
        if engine_id in self._refs:
            self.slots.acquire(engine_id)
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(engine_id, []).append(granted)
        if engine_id not in self._loading:
            self._loading[engine_id] = asyncio.create_task(self._load(source))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self.release(engine_id)
            elif granted in self._waiters.get(engine_id, []):
                self._waiters[engine_id].remove(granted)
            raise

    def release(self, engine_id: int) -> None:
        """One request less uses it."""
        self.slots.release(engine_id)
        self._freed.set()
        if engine_id in self._leaving and not self.slots.in_use(engine_id):
            self._forget(engine_id)

    async def load(self, source: AdapterSource) -> None:
        """Bring a version into a slot."""
        await self.acquire(source)
        self.release(source.engine_id)

    async def pin(self, source: AdapterSource) -> None:
        """Load a version and keep its slot for it.

        Raises:
            LookupError: one slot has to stay free for all the others.
            AdapterLoadError: its files can't be loaded.
        """
        self.slots.pin(source.engine_id)
        try:
            await self.load(source)
        except EngineError:
            self.unpin(source.engine_id)
            raise

    def unpin(self, engine_id: int) -> None:
        self.slots.unpin(engine_id)
        self._freed.set()

    async def validate(self, source: AdapterSource) -> None:
        """Read and check a version's files, for the sake of the errors only."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._check, source)

    async def fetch(self, source: AdapterSource) -> None:
        """Read a version's files unless they have been read: checked, and in the page cache, they load quickly."""
        engine_id = source.engine_id
        if engine_id in self._read:
            self._read.move_to_end(engine_id)
            return
        if engine_id not in self._reading:
            self._reading[engine_id] = asyncio.create_task(self._fetch(source))
        await asyncio.shield(self._reading[engine_id])

    def unload(self, engine_id: int) -> None:
        """Forget a version now, or as soon as nothing in flight uses it."""
        self.unpin(engine_id)
        if engine_id in self._loading or self.slots.in_use(engine_id):
            self._leaving.add(engine_id)
        else:
            self._forget(engine_id)

    def check_integrity(self) -> None:
        """
        Raises:
            IntegrityError: at rest, an adapter is in use, awaited or half loaded.
        """
        self.slots.check_integrity()
        in_use = [engine_id for engine_id in self.slots.ids() if self.slots.in_use(engine_id)]
        require(not in_use, f"the slots of adapters {in_use} are in use")
        require(not self.waiting, f"requests wait for adapters {list(self._waiters)}")
        require(set(self.slots.ids()) == self._refs.keys(), "the adapters in slots are not those that were loaded")

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _fetch(self, source: AdapterSource) -> None:
        started = time.monotonic()
        try:
            await self.validate(source)
        finally:
            del self._reading[source.engine_id]
        self.loads.observe(time.monotonic() - started)
        self._read[source.engine_id] = None

    async def _load(self, source: AdapterSource) -> None:
        engine_id = source.engine_id
        try:
            await self.fetch(source)
            async with self._one_at_a_time:
                while not self.slots.room():
                    self._freed.clear()
                    await self._freed.wait()
                evicted = self.slots.put(engine_id)
                if evicted is not None:
                    self._refs.pop(evicted, None)
                try:
                    await self._add(source)
                except BaseException:
                    self.slots.remove(engine_id)
                    raise
                await self._trim()
        except Exception as error:
            shown = error if isinstance(error, EngineError) else AdapterLoadError(f"{source.ref}: {error}")
            del self._loading[engine_id]
            self.unpin(engine_id)
            for granted in self._waiters.pop(engine_id, []):
                if not granted.done():  # its request has just given up
                    granted.set_exception(shown)
            return
        del self._loading[engine_id]
        self._refs[engine_id] = source.ref
        # Before anything else can happen, so that no other load takes the slot away first.
        for granted in self._waiters.pop(engine_id, []):
            if not granted.done():
                self.slots.acquire(engine_id)
                granted.set_result(None)
        self._freed.set()
        if engine_id in self._leaving and not self.slots.in_use(engine_id):
            self._forget(engine_id)

    async def _trim(self) -> None:
        """Take the least recently used versions without a slot out of vLLM's host memory."""
        idle = [engine_id for engine_id in self._read if engine_id not in self.slots]
        for engine_id in idle[: max(0, len(self._read) - self._host_capacity)]:
            del self._read[engine_id]
            await self._remove(engine_id)

    def _forget(self, engine_id: int) -> None:
        self._leaving.discard(engine_id)
        self._refs.pop(engine_id, None)
        self.slots.remove(engine_id)
        self._freed.set()
        if self._read.pop(engine_id, 0) is None:
            removal = asyncio.ensure_future(self._remove(engine_id))
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)
