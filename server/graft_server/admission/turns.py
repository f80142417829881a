"""Which adapters hold a slot, and when one that holds it gives way to one that waits.

An adapter that holds a slot keeps letting its own requests in: they share a batch, and its weights are read once for
all of them. This is its *turn*. While another adapter waits for a slot, a turn ends after so many tokens or so many
seconds, whichever comes first: then it lets nobody in any more, its requests in flight run out, and the slot goes to
the adapter that has waited longest. As many turns end as adapters wait, and no more.

So an adapter waits for its slot at most (adapters before it) x (a turn + the longest answer), whatever comes in
meanwhile. An adapter that is wanted in the background only queues as if it had come ``patience`` seconds later, ends
nobody's turn before then, and gives way at once to one that people wait for.

A pinned adapter has its slot whether it is asked for or not: it waits for none, its turn never ends, and the others
share what is left.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice, takewhile


@dataclass(slots=True)
class _Turn:
    """``tokens`` were let in since ``started``; ``running`` requests are in flight."""

    started: float
    background: bool
    tokens: int = 0
    running: int = 0


class Turns:
    """Slots by adapter. The base model needs none and is never here."""

    def __init__(self, slots: int, *, tokens: int, seconds: float, patience: float) -> None:
        self.slots = slots
        self._tokens = tokens
        self._seconds = seconds
        self._patience = patience
        self._held: dict[int, _Turn] = {}
        self._pinned: set[int] = set()
        #: Turns that are over, in the order in which that was seen: the first ones are those that give way.
        self._over: dict[int, None] = {}
        #: Adapters that wait and from when on they count, by class. Each is in the order of these times.
        self._waiting: dict[bool, OrderedDict[int, float]] = {False: OrderedDict(), True: OrderedDict()}

    def __contains__(self, adapter: int) -> bool:
        """Whether it holds a slot."""
        return adapter in self._held

    @property
    def held(self) -> int:
        return len(self._held)

    def idle(self, adapter: int) -> bool:
        """It holds a slot and has nothing in flight."""
        return self._held[adapter].running == 0

    def pin(self, adapter: int) -> None:
        """Keep a slot for an adapter from now on."""
        self._pinned.add(adapter)
        self._over.pop(adapter, None)

    def unpin(self, adapter: int) -> None:
        """Have an adapter share slots with the others again; one that is not pinned is left as it is."""
        self._pinned.discard(adapter)

    def want(self, adapter: int, *, background: bool, now: float) -> None:
        """Wait for a slot, or hold the one that is kept for it. One that waits already keeps its place unless its class
        has changed."""
        if adapter in self._pinned:
            self.give_up(adapter)
            self._held[adapter] = _Turn(now, background)
        elif adapter not in self._waiting[background]:
            self._waiting[not background].pop(adapter, None)
            self._waiting[background][adapter] = now + (self._patience if background else 0.0)

    def give_up(self, adapter: int) -> None:
        """Neither hold a slot nor wait for one."""
        self._held.pop(adapter, None)
        self._over.pop(adapter, None)
        for waiting in self._waiting.values():
            waiting.pop(adapter, None)

    def grant(self, now: float) -> list[int]:
        """Give free slots to those that wait; returns the adapters that hold one from now on."""
        granted = []
        while self._free > 0:
            heads = [(due, background) for background, waiting in self._waiting.items() for due in _first(waiting)]
            if not heads:
                break
            background = min(heads)[1]
            adapter, _ = self._waiting[background].popitem(last=False)
            self._held[adapter] = _Turn(now, background)
            granted.append(adapter)
        return granted

    def retiring(self, now: float, *, crowded: bool = False) -> set[int]:
        """The adapters that let nobody in any more, so that their slots fall free. ``crowded`` says that nothing enters
        in the background for now."""
        late = takewhile(lambda due: due <= now, self._waiting[True].values())
        # Where pins came to adapters that hold all slots, some are missing, though nobody waits for them.
        missing = max(0, -self._free)
        wanted = len(self._waiting[False]) + sum(1 for _ in islice(late, self.slots)) + missing
        if not wanted:
            self._over.clear()
            return set()
        for adapter, turn in self._held.items():
            if adapter not in self._over and adapter not in self._pinned and self._ends(turn, now, crowded):
                self._over[adapter] = None
        # Those first whose slot falls free at once.
        return set(islice(sorted(self._over, key=lambda adapter: self._held[adapter].running > 0), wanted))

    @property
    def _free(self) -> int:
        """Slots that nobody holds or is pinned to; negative where more are held than the pins have left."""
        idle_pins = sum(1 for adapter in self._pinned if adapter not in self._held)
        return self.slots - len(self._held) - idle_pins

    def _ends(self, turn: _Turn, now: float, crowded: bool) -> bool:
        if not turn.tokens:
            # It took the slot and found no place yet; where it will find none, it is in people's way.
            return turn.background and crowded and bool(self._waiting[False])
        if turn.background and self._waiting[False]:
            return True
        return turn.tokens >= self._tokens or now - turn.started >= self._seconds

    def entered(self, adapter: int, cost: int, *, background: bool) -> None:
        """A request of an adapter that holds a slot was let in."""
        turn = self._held[adapter]
        turn.tokens += cost
        turn.running += 1
        turn.background &= background

    def left(self, adapter: int) -> None:
        """One of its requests has ended."""
        self._held[adapter].running -= 1


def _first(waiting: OrderedDict[int, float]) -> list[float]:
    return list(islice(waiting.values(), 1))
