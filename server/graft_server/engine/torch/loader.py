"""Adapters on their way from disk through host memory to a slot, beside the steps.

One adapter at a time is read, checked and converted; what comes of it is kept in host memory. Between two steps the
engine takes what is ready into a slot. What a request waits for goes before what is only loaded or fetched ahead, and
may take a larger part of the time while others decode.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from graft_server.engine.base import LOAD_SECONDS, AdapterLoadError, AdapterSource, EngineError
from graft_server.engine.integrity import require
from graft_server.engine.slots import Slots
from graft_server.engine.torch.host_cache import HostCache
from graft_server.engine.torch.reading import OnChecked, Pieces, Reading
from graft_server.engine.torch.resident import ResidentAdapter
from graft_server.metrics.buckets import Buckets

#: Seconds of reading for each second of a step, where a request waits for the adapter and where none does.
_URGENT_SHARE = 1 / 3
_SHARE = 1 / 12
#: Seconds of reading between two looks at the messages while nothing decodes.
_SLICE = 0.05
#: Fetched ahead at most; later wishes push out the oldest.
_MOST_AHEAD = 256


class AdapterLoader:
    """Wishes, what is being read, and the two tiers that it fills. One thread calls it, between steps.

    ``fetch`` has a version's files at hand, in a thread of its own; ``read`` makes of them, in pieces, what host memory
    keeps, and an ``EngineError`` of it says what is wrong with them. ``place`` and ``displace`` put an adapter into
    device memory and take it out again.
    """

    def __init__(
        self,
        *,
        slots: Slots,
        host: HostCache[ResidentAdapter],
        fetch: Callable[[AdapterSource], None],
        read: Callable[[AdapterSource], Pieces],
        place: Callable[[int, ResidentAdapter], None],
        displace: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = slots
        self.host = host
        #: Seconds that adapters took to be read into host memory.
        self.loads = Buckets(LOAD_SECONDS)
        self._fetch = fetch
        self._read = read
        self._place = place
        self._displace = displace
        self._clock = clock
        self._wanted: OrderedDict[int, AdapterSource] = OrderedDict()
        self._ahead: OrderedDict[int, AdapterSource] = OrderedDict()
        #: Those of the wanted that requests wait for.
        self._urgent: set[int] = set()
        self._checks: deque[tuple[AdapterSource, OnChecked]] = deque()
        self._reading: Reading | None = None
        #: Seconds that may be read beside the next steps; negative after a piece that took longer than that.
        self._credit = 0.0
        #: What is being read has been forgotten meanwhile, and nobody has asked for it again.
        self._in_vain = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adapter-files")

    @property
    def busy(self) -> bool:
        """Something is being read, or could go on now."""
        return self._reading is not None or bool(self._wanted or self._ahead or self._checks)

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

    def check(self, source: AdapterSource, on_checked: OnChecked) -> None:
        """Read a version for the sake of its errors only."""
        self._checks.append((source, on_checked))

    def poll(self, *, step_seconds: float | None = None) -> list[tuple[AdapterSource, EngineError]]:
        """Read on, and take in what is ready; returns the wanted versions that can't be loaded.

        ``step_seconds`` is how long a step takes while there are steps: reading makes them longer by a bounded part.
        """
        failed: list[tuple[AdapterSource, EngineError]] = []
        self._take_in_wanted()
        self._earn(step_seconds)
        while True:
            if self._reading is None:
                self._reading = self._next()
            if self._reading is None or not self._reading.ready or self._credit <= 0:
                return failed
            started = self._clock()
            whole = self._reading.work(self._credit, self._clock)
            self._credit -= self._clock() - started
            if whole:
                failed += self._finish(self._reading)
                self._take_in_wanted()

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

    def _earn(self, step_seconds: float | None) -> None:
        if step_seconds is None:
            self._credit = _SLICE
            return
        # What stands in the way of an urgent one is urgent too.
        hurry = any(engine_id not in self.host for engine_id in self._urgent)
        self._credit = min(0.0, self._credit) + step_seconds * (_URGENT_SHARE if hurry else _SHARE)

    def _next(self) -> Reading | None:
        """Begin with what should be read now."""
        unread = [own for own in self._wanted.values() if own.engine_id not in self.host]
        # While no slot falls idle, a full cache would only push out one wanted adapter for another.
        room = self.slots.room() or self.host.room_beside(self._wanted)
        source = next((own for own in unread if own.engine_id in self._urgent), None) if room else None
        if source is None and self._checks:
            return self._begin(*self._checks.popleft())
        if source is None and room and unread:
            source = unread[0]
        if source is None and room and self._ahead:
            _, source = self._ahead.popitem(last=False)
        return None if source is None else self._begin(source)

    def _begin(self, source: AdapterSource, on_checked: OnChecked | None = None) -> Reading:
        return Reading(source, self._thread.submit(self._fetch, source), self._read(source), on_checked)

    def _finish(self, reading: Reading) -> list[tuple[AdapterSource, EngineError]]:
        """Keep what has been read, or say that it is wanted and can't be."""
        source, in_vain = reading.source, self._in_vain
        self._reading, self._in_vain = None, False
        error = None if reading.error is None else _shown(source, reading.error)
        if reading.on_checked is not None:
            reading.on_checked(error)
        elif error is not None:
            return [(source, error)] if self._want_no_more(source.engine_id) else []
        elif reading.result is not None:
            self.loads.observe(time.monotonic() - reading.started)
            if not in_vain:
                self._keep(source.engine_id, reading.result)
        return []

    def _keep(self, engine_id: int, adapter: ResidentAdapter) -> None:
        """Take what has been read into host memory. Its size is only known now: what nobody wants yet never pushes out
        what somebody wants."""
        if engine_id in self._wanted or self.host.room_beside(self._wanted, adapter.bytes):
            self.host.put(engine_id, adapter, adapter.bytes, kept=self._wanted)

    def _take_in_wanted(self) -> None:
        for engine_id in list(self._wanted):
            if not self.slots.room():
                return
            adapter = self.host.get(engine_id)
            if adapter is not None:
                self._want_no_more(engine_id)
                self._take_in(engine_id, adapter)

    def _take_in(self, engine_id: int, adapter: ResidentAdapter) -> None:
        evicted = self.slots.put(engine_id)
        if evicted is not None:
            self._displace(evicted)
        self._place(engine_id, adapter)

    def _want_no_more(self, engine_id: int) -> bool:
        """Whether it was wanted."""
        self._urgent.discard(engine_id)
        return self._wanted.pop(engine_id, None) is not None

    def _is_being_read(self, engine_id: int) -> bool:
        reading = self._reading
        return reading is not None and reading.on_checked is None and reading.source.engine_id == engine_id


def _shown(source: AdapterSource, error: BaseException) -> EngineError:
    return error if isinstance(error, EngineError) else AdapterLoadError(f"{source.ref}: {error}")
