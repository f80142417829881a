"""Adapters on their way from disk through host memory to a slot, beside the steps.

A thread reads, checks and converts one adapter at a time; what it gives is kept in host memory. Between two steps
the engine takes what is ready into a slot. What a request waits for goes before what is only loaded or fetched ahead,
and that rests between two adapters while others decode: reading takes a core from the steps.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from graft_server.engine.base import LOAD_SECONDS, AdapterLoadError, AdapterSource, EngineError
from graft_server.engine.integrity import require
from graft_server.engine.torch.host_cache import HostCache
from graft_server.engine.torch.resident import ResidentAdapter
from graft_server.engine.torch.slots import Slots
from graft_server.metrics.buckets import Buckets

#: Reads the files of a version into host memory; an ``EngineError`` says what is wrong with them.
Read = Callable[[AdapterSource], ResidentAdapter]

#: While others decode, what no request waits for is read for one part of the time in so many and one.
_REST = 3.0
#: Fetched ahead at most; later wishes push out the oldest.
_MOST_AHEAD = 256


class AdapterLoader:
    """Wishes, the reading thread, and the two tiers it fills. One thread calls it, between steps.

    ``place`` and ``displace`` put an adapter into device memory and take it out again.
    """

    def __init__(
        self,
        *,
        slots: Slots,
        host: HostCache[ResidentAdapter],
        read: Read,
        place: Callable[[int, ResidentAdapter], None],
        displace: Callable[[int], None],
    ) -> None:
        self.slots = slots
        self.host = host
        #: Seconds that adapters took to be read into host memory.
        self.loads = Buckets(LOAD_SECONDS)
        self._read = read
        self._place = place
        self._displace = displace
        self._wanted: OrderedDict[int, AdapterSource] = OrderedDict()
        self._ahead: OrderedDict[int, AdapterSource] = OrderedDict()
        #: Those of the wanted that requests wait for.
        self._urgent: set[int] = set()
        self._rest_until = 0.0
        self._reading: tuple[AdapterSource, Future[ResidentAdapter]] | None = None
        #: What is being read has been forgotten meanwhile, and nobody has asked for it again.
        self._in_vain = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adapter-loader", initializer=_step_aside)

    @property
    def busy(self) -> bool:
        """Something is being read, or could go on now."""
        return self._reading is not None or bool(self._wanted) or bool(self._ahead)

    def want(self, source: AdapterSource, *, urgent: bool = False) -> None:
        """Bring a version into a slot as soon as one falls idle; ``urgent`` where a request waits for it."""
        if source.engine_id not in self.slots:
            if urgent:
                self._urgent.add(source.engine_id)
            self._ahead.pop(source.engine_id, None)
            self._wanted[source.engine_id] = source
            if self._is_being_read(source.engine_id):
                self._in_vain = False

    def give_up(self, engine_id: int) -> None:
        """Nobody waits for a version any more; what has been read of it stays in host memory."""
        self._want_no_more(engine_id)

    def fetch_ahead(self, source: AdapterSource) -> None:
        """Bring a version into host memory: somebody will want it soon."""
        known = source.engine_id in self.slots or source.engine_id in self.host or source.engine_id in self._wanted
        if self._is_being_read(source.engine_id):
            self._in_vain = False
        elif not known:
            self._ahead[source.engine_id] = source
            if len(self._ahead) > _MOST_AHEAD:
                self._ahead.popitem(last=False)

    def forget(self, engine_id: int) -> None:
        """A version has gone; it leaves host memory, and its slot if it has one."""
        self._want_no_more(engine_id)
        self._ahead.pop(engine_id, None)
        if self._is_being_read(engine_id):
            self._in_vain = True
        self.host.remove(engine_id)
        if engine_id in self.slots:
            self.slots.remove(engine_id)
            self._displace(engine_id)

    def check(self, source: AdapterSource, done: Callable[[EngineError | None], None]) -> None:
        """Read a version for the sake of its errors only; ``done`` is called in the reading thread."""

        def check() -> None:
            try:
                self._read(source)
            except Exception as error:
                done(_shown(source, error))
            else:
                done(None)

        self._thread.submit(check)

    def poll(self, *, decoding: bool = False) -> list[tuple[AdapterSource, EngineError]]:
        """Take in what has been read and start reading the next; returns the wanted versions that can't be loaded.

        ``decoding`` says that there are steps which reading would slow down.
        """
        failed: list[tuple[AdapterSource, EngineError]] = []
        if self._reading is not None and self._reading[1].done():
            (source, future), in_vain = self._reading, self._in_vain
            self._reading, self._in_vain = None, False
            error = future.exception()
            if error is not None:
                if self._want_no_more(source.engine_id):
                    failed.append((source, _shown(source, error)))
            elif not in_vain:
                self._keep(source.engine_id, future.result())
        for engine_id in list(self._wanted):
            if not self.slots.room():
                break
            adapter_or_none = self.host.get(engine_id)
            if adapter_or_none is not None:
                self._want_no_more(engine_id)
                self._take_in(engine_id, adapter_or_none)
        self._read_next(resting=decoding and time.monotonic() < self._rest_until)
        return failed

    def check_integrity(self) -> None:
        """
        Raises:
            IntegrityError: the host's memory is counted wrongly, or a version both has a slot and waits for one.
        """
        self.host.check_integrity()
        placed = [engine_id for engine_id in self._wanted if engine_id in self.slots]
        require(not placed, f"adapters {placed} wait for a slot and have one")
        both = self._wanted.keys() & self._ahead.keys()
        require(not both, f"adapters {both} are wanted now and fetched ahead")

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _keep(self, engine_id: int, adapter: ResidentAdapter) -> None:
        """Take what has been read into host memory. Its size is only known now: what nobody wants yet never pushes out
        what somebody wants."""
        if engine_id in self._wanted or self.host.room_beside(self._wanted, adapter.bytes):
            self.host.put(engine_id, adapter, adapter.bytes, kept=self._wanted)

    def _take_in(self, engine_id: int, adapter: ResidentAdapter) -> None:
        evicted = self.slots.put(engine_id)
        if evicted is not None:
            self._displace(evicted)
        self._place(engine_id, adapter)

    def _want_no_more(self, engine_id: int) -> bool:
        """Whether it was wanted."""
        self._urgent.discard(engine_id)
        return self._wanted.pop(engine_id, None) is not None

    def _read_next(self, *, resting: bool) -> None:
        # While no slot falls idle, a full cache would only push out one wanted adapter for another.
        if self._reading is not None or not (self.slots.room() or self.host.room_beside(self._wanted)):
            return
        unread = [own for own in self._wanted.values() if own.engine_id not in self.host]
        source = next((own for own in unread if own.engine_id in self._urgent), None)
        if source is None and unread and not resting:
            source = unread[0]
        if source is None and self._ahead and not resting:
            _, source = self._ahead.popitem(last=False)
        if source is not None:
            self._reading = (source, self._thread.submit(self._timed_read, source))

    def _timed_read(self, source: AdapterSource) -> ResidentAdapter:
        started = time.monotonic()
        adapter = self._read(source)
        ended = time.monotonic()
        self.loads.observe(ended - started)
        self._rest_until = ended + _REST * (ended - started)
        return adapter

    def _is_being_read(self, engine_id: int) -> bool:
        return self._reading is not None and self._reading[0].engine_id == engine_id


def _shown(source: AdapterSource, error: BaseException) -> EngineError:
    return error if isinstance(error, EngineError) else AdapterLoadError(f"{source.ref}: {error}")


def _step_aside() -> None:
    """The steps come first: one core at most."""
    torch.set_num_threads(1)
