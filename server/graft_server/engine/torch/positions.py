"""Where in a stack each adapter in use has its place. Pure state: no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

#: Writing an adapter to a position costs about as much as reading this many positions.
_READS_OF_A_WRITE = 3


@dataclass(frozen=True, slots=True)
class Write:
    """An adapter comes to a position; whoever was there is gone from it."""

    position: int
    engine_id: int


class Positions:
    """Adapters keep their position while others come and go, so that a batch whose mixture changes pays for the
    newcomer only.

    A batch reads every position up to the highest one it uses. What it reads in vain is added up, and once that
    would have paid for moving the adapters together they are moved (the ski-rental rule: at most twice the best cost).
    """

    def __init__(self) -> None:
        self._ids: list[int | None] = []
        self._of: dict[int, int] = {}
        self._wasted = 0

    def __getitem__(self, engine_id: int) -> int:
        return self._of[engine_id]

    def __contains__(self, engine_id: int) -> bool:
        return engine_id in self._of

    def __len__(self) -> int:
        """Positions there are, free ones among them."""
        return len(self._ids)

    @property
    def ids(self) -> Sequence[int | None]:
        """Who is at each position."""
        return self._ids

    def assign(self, wanted: Collection[int]) -> list[Write]:
        """Give each of these adapters a position; returns what has to be written for that."""
        missing = [engine_id for engine_id in wanted if engine_id not in self._of]
        writes: list[Write] = []
        if missing:
            free = [at for at, engine_id in enumerate(self._ids) if engine_id is None]
            stale = [at for at, engine_id in enumerate(self._ids) if engine_id is not None and engine_id not in wanted]
            fresh = range(len(self._ids), len(self._ids) + len(missing))
            writes = [self._put(at, own) for at, own in zip([*free, *stale, *fresh], missing, strict=False)]
        return writes + self._move_together(wanted)

    def remove(self, engine_id: int) -> None:
        """Free an adapter's position; unknown ids are ignored."""
        position = self._of.pop(engine_id, None)
        if position is not None:
            self._ids[position] = None

    def _move_together(self, wanted: Collection[int]) -> list[Write]:
        count = len(wanted)
        self._wasted += max((self._of[engine_id] for engine_id in wanted), default=-1) + 1 - count
        outside = [engine_id for engine_id in wanted if self._of[engine_id] >= count]
        if not outside or self._wasted <= _READS_OF_A_WRITE * len(outside):
            return []
        self._wasted = 0
        inside = [at for at in range(count) if self._ids[at] not in wanted]
        return [self._put(at, engine_id) for at, engine_id in zip(inside, outside, strict=True)]

    def _put(self, position: int, engine_id: int) -> Write:
        self.remove(engine_id)
        if position == len(self._ids):
            self._ids.append(None)
        former = self._ids[position]
        if former is not None:
            del self._of[former]
        self._ids[position] = engine_id
        self._of[engine_id] = position
        return Write(position, engine_id)
