"""Guards: what each target of each route did lately, and whether a canary is to lose its weight for it.

``Guards`` is pure state; times are seconds of any monotonic clock. ``CanaryStop`` carries out what it decides.
"""

from __future__ import annotations

import asyncio
import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

from graft_client.schemas.routes import RouteGuard, TargetFigures
from graft_server.registry import Registry
from graft_server.registry.records import RouteRecord

log = logging.getLogger(__name__)

#: Problems that are the server's or the version's doing, not the caller's and not a full server's.
FAULTS = frozenset(
    {"adapter-unloadable", "task-missing", "plugin-fault", "engine-error", "internal", "deadline-exceeded"}
)
#: How many requests are remembered of a target at most.
_MOST = 10_000
#: The window of routes without a guard, in seconds.
_WINDOW = 300.0
#: Seconds between two tries to write to a database that is away; the last of them again and again.
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended: a fault or ``seconds`` to the whole answer, and the answer's value of the metric."""

    time: float
    seconds: float
    failed: bool
    metric: float | None = None


@dataclass(slots=True)
class _Watched:
    """The targets of one revision of a route; a changed route is watched anew."""

    revision: int
    outcomes: dict[str, deque[Outcome]] = field(default_factory=dict)
    tripped: set[str] = field(default_factory=set)


class Guards:
    """Watches the requests of all routes. ``trip`` is called once with a route, its canary and the reason."""

    def __init__(self, trip: Callable[[RouteRecord, str, str], None]) -> None:
        self._trip = trip
        self._watched: dict[str, _Watched] = {}

    def record(self, route: RouteRecord, ref: str, outcome: Outcome) -> None:
        """A request of a route has ended."""
        watched = self._watched.get(route.name)
        if watched is None or watched.revision < route.revision:
            watched = self._watched[route.name] = _Watched(route.revision)
        if watched.revision != route.revision:
            return  # it was on its way when the route was changed
        outcomes = watched.outcomes.setdefault(ref, deque(maxlen=_MOST))
        outcomes.append(outcome)
        guard = route.spec.guard
        _forget(outcomes, outcome.time - _window(guard))
        if guard is None or ref in watched.tripped or ref not in canaries(route):
            return
        reason = crossed(guard, outcomes)
        if reason is not None:
            watched.tripped.add(ref)
            self._trip(route, ref, reason)

    def figures(self, route: RouteRecord, now: float) -> list[TargetFigures]:
        """What the targets did within the window."""
        watched = self._watched.get(route.name)
        if watched is None or watched.revision != route.revision:
            return []
        found = []
        for ref, outcomes in watched.outcomes.items():
            _forget(outcomes, now - _window(route.spec.guard))
            if outcomes:
                found.append(_figures(ref, outcomes))
        return found


def canaries(route: RouteRecord) -> set[str]:
    """All targets with weight but the heaviest."""
    heaviest = max(route.spec.targets, key=lambda target: target.weight).ref
    return {target.ref for target in route.spec.targets if target.weight > 0 and target.ref != heaviest}


def crossed(guard: RouteGuard, outcomes: deque[Outcome]) -> str | None:
    """Which bound was crossed, as one sentence, or ``None``."""
    if len(outcomes) < guard.min_requests:
        return None
    seen = _figures("", outcomes)
    of = f"of {len(outcomes)} requests in {guard.window_seconds:g} s"
    if guard.max_error_rate is not None and seen.error_rate > guard.max_error_rate:
        return f"{seen.error_rate:.1%} {of} failed, more than {guard.max_error_rate:.1%}"
    if guard.max_p95_seconds is not None and (seen.p95_seconds or 0) > guard.max_p95_seconds:
        return f"the 95th percentile {of} is {seen.p95_seconds:.2f} s, more than {guard.max_p95_seconds:g} s"
    # Answers without the metric say nothing about it.
    if sum(outcome.metric is not None for outcome in outcomes) < guard.min_requests or seen.metric is None:
        return None
    if guard.min_metric is not None and seen.metric < guard.min_metric:
        return f"the mean {guard.metric} {of} is {seen.metric:.4g}, less than {guard.min_metric:g}"
    if guard.max_metric is not None and seen.metric > guard.max_metric:
        return f"the mean {guard.metric} {of} is {seen.metric:.4g}, more than {guard.max_metric:g}"
    return None


def metric_of(output: Mapping[str, Any], name: str | None) -> float | None:
    """A field of an answer as a number; a list counts by its length."""
    match output.get(name) if name is not None else None:
        case bool() | int() | float() as value if math.isfinite(value):
            return float(value)
        case list() as values:
            return float(len(values))
        case _:
            return None


def _figures(ref: str, outcomes: deque[Outcome]) -> TargetFigures:
    seconds = sorted(outcome.seconds for outcome in outcomes if not outcome.failed)
    metrics = [outcome.metric for outcome in outcomes if outcome.metric is not None]
    return TargetFigures(
        ref=ref,
        requests=len(outcomes),
        error_rate=sum(outcome.failed for outcome in outcomes) / len(outcomes),
        # The nearest rank.
        p95_seconds=seconds[math.ceil(0.95 * len(seconds)) - 1] if seconds else None,
        metric=statistics.fmean(metrics) if metrics else None,
    )


def _window(guard: RouteGuard | None) -> float:
    return guard.window_seconds if guard is not None else _WINDOW


def _forget(outcomes: deque[Outcome], before: float) -> None:
    while outcomes and outcomes[0].time <= before:
        outcomes.popleft()


class CanaryStop:
    """What a guard does: it takes the canary's weight in the registry, and says so in the log.

    A registry that does not answer is asked again until it does; whoever changes the route meanwhile has the last word.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._stopping: set[asyncio.Task[None]] = set()

    def __call__(self, route: RouteRecord, ref: str, reason: str) -> None:
        # Not the doing of the caller whose request was one too many, who may not even see the route's targets.
        task = asyncio.create_task(self._stop(route, ref, reason), context=Context())
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def settled(self) -> None:
        """Wait until what was decided is carried out."""
        await asyncio.gather(*self._stopping)

    async def _stop(self, route: RouteRecord, ref: str, reason: str) -> None:
        for pause in chain(_PAUSES, repeat(_PAUSES[-1])):
            try:
                stopped = await asyncio.to_thread(
                    self._registry.routes.trip, route.name, ref, revision=route.revision, why=f"{ref}: {reason}"
                )
            except Exception:
                log.exception("route %s: the weight of %s could not be taken; trying again", route.name, ref)
                await asyncio.sleep(pause)
                continue
            if stopped is not None:
                log.warning("route %s: %s lost its weight: %s", route.name, ref, reason)
            return
