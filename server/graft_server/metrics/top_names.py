"""Which adapters get a label of their own in the figures: those that are asked most. Pure state, without a clock.

A figure with a label costs Prometheus memory for every value the label ever had, so only ``limit`` names have one at
a time and the rest share one. Giving labels to the first names seen would let a caller who asks every adapter once use
them up for good. Taking the label of the least used name for every new one (Space-Saving as it stands: Metwally et
al. 2005) would let the same caller churn them. So a name without a label must *earn* one:

- Requests for names without a label are counted by the algorithm of Misra and Gries ("Finding repeated elements",
  1982): a fixed number of counters, none above the true number of requests, and at most 1 in ``counters + 1``
  requests below it. It keeps the same names as Space-Saving does, and its counts are lower bounds as they are.
- A name takes the label of the least used one once it certainly was asked ``_LEAST`` times and twice as often as that
  one. It gives the label back only to a name that passes it by as much again, so names of about the same use don't
  take turns.
- All counts are halved every ``100 * limit`` requests: what counts is the recent past, and an adapter that was busy
  last month loses to one that is busy now.
"""

from __future__ import annotations

#: Requests that a name without a label needs at least before it takes another's.
_LEAST = 16
#: Counters for names without a label, for each label there is.
_CANDIDATES = 4
#: Requests after which counts are halved, for each label there is.
_HALVE_AFTER = 100


class TopNames:
    """At most ``limit`` names, of those that are counted the ones counted most."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._top: dict[str, int] = {}
        self._candidates: dict[str, int] = {}
        self._until_halving = _HALVE_AFTER * limit

    def __contains__(self, name: str) -> bool:
        return name in self._top

    def count(self, name: str) -> str | None:
        """Count one request for ``name``, after which it may be in or not.

        Returns:
            The name that had to leave for it, if one had.
        """
        self._age()
        if name in self._top:
            self._top[name] += 1
            return None
        if len(self._top) < self.limit:
            self._top[name] = 1
            return None
        seen = self._count_candidate(name)
        # Every so many requests are enough to compare: the least used name is found by looking at all.
        if not self._top or not seen or seen % _LEAST:
            return None
        least = min(self._top, key=self._top.__getitem__)
        if seen < 2 * self._top[least]:
            return None
        del self._candidates[name]
        self._candidates[least] = self._top.pop(least)
        self._top[name] = seen
        return least

    def _count_candidate(self, name: str) -> int:
        if name in self._candidates:
            self._candidates[name] += 1
        elif len(self._candidates) < _CANDIDATES * self.limit:
            self._candidates[name] = 1
        else:
            self._candidates = {other: count - 1 for other, count in self._candidates.items() if count > 1}
        return self._candidates.get(name, 0)

    def _age(self) -> None:
        self._until_halving -= 1
        if self._until_halving <= 0:
            self._until_halving = _HALVE_AFTER * self.limit
            self._top = {name: count // 2 for name, count in self._top.items()}
            self._candidates = {name: count // 2 for name, count in self._candidates.items() if count > 1}
