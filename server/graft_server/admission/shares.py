"""How many requests one adapter may have in flight beside the others.

The engine computes everything that was let in as one batch, and a step takes ``a + b * rows`` seconds. So fair
turns in the queue are not enough: an adapter that floods the server would fill the batch, and a quiet one's request,
though let in at once, would be as slow as the flood makes each step. Dividing the places equally does not help either:
a quiet adapter uses few of its own, and the flood's equal part of 256 places already slows everybody several times.

What is limited is therefore the slowdown. With ``q`` rows of adapters that ask for less, ``f`` rows of one that asks
for more make a step ``(a + b * (q + f)) / (a + b * q)`` times as long, which is at most ``slowdown`` while::

    f <= (slowdown - 1) * (knee + q)        where knee = a / b

An adapter may have that many requests in flight; ``least`` in any case; twice as many as any one of those that ask for
less, so that adapters which ask for nearly as much as each other are left to the turns of the round robin; and at most
half of all places, so that the others find one free. The bound is well below the factor of 2 that a quiet adapter's
slowest answers may take under a flood, because the flood's prompts take time in the same steps.

The limit doubles with each ``half_life`` in which nobody is there who asks for less, up to ``_ALONE`` knees, which is
nearly all of the engine's throughput. So an adapter that is alone is soon served as if there were no limit, and one
that sends a request every second never finds the engine filled by another.

How much an adapter asks for is its *load*: the most requests it had waiting or running, halved with each
``half_life`` since. Loads are compared by powers of two. The whole of the background is limited like one adapter that
asks for more than anybody.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graft_server.admission.queues import Adapter

#: Loads of 2**13 requests and more are one.
_LEVELS = 14
#: Half-lives after which nothing is left of a load.
_FORGOTTEN = 16.0
#: Knees that one adapter may have in flight at all: ``n`` of them reach ``n / (n + 1)`` of the throughput of a batch
#: without end, and whoever comes next finds steps ``n + 1`` times as long until they have ended.
_ALONE = 6


@dataclass(slots=True)
class _Seen:
    """An adapter when something last happened to it: its requests, its load and the load's power of two."""

    outstanding: int
    load: float
    at: float
    level: int


class Shares:
    """Loads of adapters, and from them the limits of one moment."""

    def __init__(self, max_running: int, *, slowdown: float = 1.3, least: int = 4, half_life: float = 2.0) -> None:
        self.max_running = max_running
        self.slowdown = slowdown
        self.least = least
        self.half_life = half_life
        #: The longest unseen first.
        self._seen: dict[Adapter, _Seen] = {}
        #: The same by level.
        self._levels: list[OrderedDict[Adapter, _Seen]] = [OrderedDict() for _ in range(_LEVELS)]

    def arrived(self, adapter: Adapter, now: float) -> None:
        """One request more waits."""
        self._see(adapter, 1, now)
        self._forget(now)

    def left(self, adapter: Adapter, now: float) -> None:
        """One request has ended, or given up."""
        self._see(adapter, -1, now)

    def level(self, adapter: Adapter) -> int:
        """The power of two of an adapter's load."""
        return self._seen[adapter].level

    def limits(self, knee: float, running: Mapping[Adapter, int], waiting: Iterable[Adapter], now: float) -> Limits:
        """The limits at this moment, with ``running`` requests by adapter, and adapters that wait for a place."""
        levels = [_Level(seen[next(reversed(seen))].at if seen else None) for seen in self._levels]
        for adapter in waiting:
            levels[self.level(adapter)].last = now
        for adapter, rows in running.items():
            level = levels[self.level(adapter)]
            level.last = now
            level.rows += rows
            level.most = max(level.most, rows)
        return Limits(self, knee, levels, now)

    def _see(self, adapter: Adapter, change: int, now: float) -> None:
        seen = self._seen.pop(adapter, None)
        outstanding, load = change, float(change)
        if seen is not None:
            del self._levels[seen.level][adapter]
            outstanding += seen.outstanding
            load = max(float(outstanding), seen.load * 0.5 ** ((now - seen.at) / self.half_life))
        level = min(int(load).bit_length(), _LEVELS - 1)
        self._seen[adapter] = self._levels[level][adapter] = _Seen(outstanding, load, now, level)

    def _forget(self, now: float) -> None:
        """Drop those of whom nothing is left; what this costs was paid for by their arrivals."""
        horizon = now - _FORGOTTEN * self.half_life
        while (oldest := next(iter(self._seen.items())))[1].at < horizon:
            adapter, seen = oldest
            if seen.outstanding:
                self._see(adapter, 0, now)
            else:
                del self._levels[seen.level][adapter], self._seen[adapter]


@dataclass(slots=True)
class _Level:
    """Adapters of about the same load: when one was last there, their rows, and the most that one of them has."""

    last: float | None
    rows: int = 0
    most: int = 0


class Limits:
    """Requests that may be in flight, while requests enter at one moment."""

    def __init__(self, shares: Shares, knee: float, levels: list[_Level], now: float) -> None:
        self._shares = shares
        self._knee = knee
        self._levels = levels
        self._now = now

    def of(self, adapter: Adapter) -> float:
        """For one adapter, without its background."""
        lighter = self._levels[: self._shares.level(adapter)]
        return self._limit(lighter, floor=2 * max((level.most for level in lighter), default=0))

    @property
    def background(self) -> float:
        """For the background of all adapters together."""
        return self._limit(self._levels, floor=0)

    def entered(self, adapter: Adapter, rows: int) -> None:
        """An adapter has ``rows`` requests in flight now, one more than before."""
        level = self._levels[self._shares.level(adapter)]
        level.rows += 1
        level.most = max(level.most, rows)

    def _limit(self, lighter: list[_Level], *, floor: int) -> float:
        shares = self._shares
        most = max(floor, _ALONE * self._knee)
        last = max((level.last for level in lighter if level.last is not None), default=None)
        if last is None:
            return most
        rows = sum(level.rows for level in lighter)
        limit = max(shares.least, floor, (shares.slowdown - 1) * (self._knee + rows))
        limit = max(1.0, min(limit, shares.max_running / 2))
        alone = min(_FORGOTTEN, (self._now - last) / shares.half_life)
        return min(most, limit * math.exp2(alone))
