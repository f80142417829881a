"""A histogram that can be added to another one, which those of ``prometheus_client`` can't."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate


class Buckets:
    """Counts of values by upper bound, and their sum. A value that equals a bound is below it, as in Prometheus."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float], counts: Sequence[int] | None = None, total: float = 0.0) -> None:
        self.bounds = bounds
        #: One a bound, and one for what is above all of them.
        self.counts = [0] * (len(bounds) + 1) if counts is None else list(counts)
        self.sum = total

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, other: Buckets) -> None:
        """Take the values of ``other``, which has the same bounds, in."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def copy(self) -> Buckets:
        return Buckets(self.bounds, self.counts, self.sum)

    def cumulative(self) -> Iterator[tuple[str, float]]:
        """Each bound as Prometheus writes it, with the number of values up to it."""
        names = [*map(str, map(float, self.bounds)), "+Inf"]
        return zip(names, map(float, accumulate(self.counts)), strict=True)
