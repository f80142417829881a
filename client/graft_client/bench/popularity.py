"""How often each adapter is asked for."""

from __future__ import annotations

from typing import Literal

Popularity = Literal["uniform", "zipf"]


def shares(popularity: Popularity, count: int, exponent: float = 1.0) -> list[float]:
    """The share of the requests that each of ``count`` adapters gets, in their order; the shares sum to 1.

    ``zipf`` gives the adapter of rank r (from 1) a share proportional to ``r ** -exponent``, as requests for
    things of unequal popularity commonly fall (Breslau et al., "Web Caching and Zipf-like Distributions",
    INFOCOM 1999, find exponents between 0.64 and 0.83 for web pages).
    """
    weights = [1.0 if popularity == "uniform" else rank**-exponent for rank in range(1, count + 1)]
    total = sum(weights)
    return [weight / total for weight in weights]
