"""Means and percentiles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from graft_client.schemas.common import Schema

PERCENTILES = (50, 90, 95, 99)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` of 100 parts of the ascending values lie.

    Between two values it is interpolated linearly: definition 7 of Hyndman and Fan, "Sample Quantiles in
    Statistical Packages" (1996), which is numpy's default too.

    Raises:
        ValueError: there are no values.
    """
    if not ordered:
        raise ValueError("no values")
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


class Distribution(Schema):
    """Mean and percentiles of one kind of time, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Distribution | None:
        """Of times in seconds; None where there are none."""
        ordered = sorted(1000 * value for value in seconds)
        if not ordered:
            return None
        figures = {f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES}
        return cls(mean=math.fsum(ordered) / len(ordered), **figures)
