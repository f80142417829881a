"""When the requests of an open loop arrive."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random


def poisson(rate: float, random: Random) -> Iterator[float]:
    """The arrival times of a Poisson process, in seconds from its beginning, without end.

    ``rate`` is the mean number of arrivals a second. The gaps are independent and exponentially distributed, as
    those of requests from many people who do not know of each other.
    """
    at = 0.0
    while True:
        at += random.expovariate(rate)
        yield at
