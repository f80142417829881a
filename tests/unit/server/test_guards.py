"""Guards as pure state: windows, bounds, and that a changed route is watched anew."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime

import pytest

from graft_client.schemas.routes import RouteGuard, RouteSpec
from graft_server.registry.records import RouteRecord
from graft_server.serving.guards import Guards, Outcome, canaries, crossed, metric_of


def route(revision: int = 1, **guard: float | str) -> RouteRecord:
    targets = [{"ref": "a@1", "weight": 70}, {"ref": "a@2", "weight": 30}, {"ref": "a@3", "weight": 0}]
    spec = RouteSpec.model_validate({"targets": targets, "guard": guard or None})
    return RouteRecord(name="go", task="chat", spec=spec, revision=revision, updated_at=datetime.now(UTC), versions={})


def outcomes(*seconds: float, failed: int = 0, metric: float | None = None) -> deque[Outcome]:
    good = [Outcome(0.0, each, failed=False, metric=metric) for each in seconds]
    return deque(good + [Outcome(0.0, 0.1, failed=True)] * failed)


def test_canaries_are_all_with_weight_but_the_heaviest() -> None:
    assert canaries(route()) == {"a@2"}


@pytest.mark.parametrize(
    ("bound", "seen", "told"),
    [
        ({"max_error_rate": 0.1}, outcomes(*[1.0] * 9, failed=1), None),
        ({"max_error_rate": 0.1}, outcomes(*[1.0] * 8, failed=2), "20.0% of 10 requests in 300 s failed"),
        ({"max_error_rate": 0.1}, outcomes(failed=9), None),
        ({"max_p95_seconds": 2.0}, outcomes(*[1.0] * 19, 9.0), None),
        ({"max_p95_seconds": 2.0}, outcomes(*[1.0] * 18, 9.0, 9.0), "is 9.00 s, more than 2 s"),
        ({"metric": "m", "min_metric": 0.5}, outcomes(*[1.0] * 10, metric=0.5), None),
        ({"metric": "m", "min_metric": 0.5}, outcomes(*[1.0] * 10, metric=0.4), "is 0.4, less than 0.5"),
        ({"metric": "m", "max_metric": 0.5}, outcomes(*[1.0] * 10, metric=0.6), "is 0.6, more than 0.5"),
        ({"metric": "m", "min_metric": 0.5}, outcomes(*[1.0] * 10), None),
    ],
)
def test_bounds(bound: dict[str, float], seen: deque[Outcome], told: str | None) -> None:
    reason = crossed(RouteGuard.model_validate({"min_requests": 10, **bound}), seen)
    assert (reason is None) is (told is None)
    assert told is None or told in str(reason)


def test_only_the_window_counts_and_a_canary_is_told_once() -> None:
    told = []
    guards = Guards(lambda route, ref, reason: told.append((ref, reason)))
    watched = route(max_error_rate=0.5, min_requests=3, window_seconds=10)
    for time in range(3):
        guards.record(watched, "a@1", Outcome(time, 1.0, failed=True))
    guards.record(watched, "a@2", Outcome(0, 1.0, failed=True))
    guards.record(watched, "a@2", Outcome(1, 1.0, failed=True))
    guards.record(watched, "a@2", Outcome(11.5, 1.0, failed=True))
    assert told == []
    guards.record(watched, "a@2", Outcome(12, 1.0, failed=True))
    guards.record(watched, "a@2", Outcome(12.5, 1.0, failed=True))
    guards.record(watched, "a@2", Outcome(12.6, 1.0, failed=True))
    assert [ref for ref, _ in told] == ["a@2"]
    [canary] = guards.figures(watched, now=13)
    assert (canary.ref, canary.requests, canary.error_rate) == ("a@2", 4, 1.0)
    assert guards.figures(watched, now=99) == []


def test_a_changed_route_is_watched_anew() -> None:
    told = []
    guards = Guards(lambda route, ref, reason: told.append(route.revision))
    old, new = (route(revision, max_error_rate=0.5, min_requests=2) for revision in (1, 2))
    guards.record(old, "a@2", Outcome(0, 1.0, failed=True))
    guards.record(new, "a@2", Outcome(1, 1.0, failed=True))
    guards.record(old, "a@2", Outcome(2, 1.0, failed=True))
    assert told == []
    guards.record(new, "a@2", Outcome(3, 1.0, failed=True))
    assert told == [2]


@pytest.mark.parametrize(
    ("value", "number"),
    [(0.5, 0.5), (3, 3.0), (True, 1.0), ([1, 2], 2.0), ([], 0.0), ("x", None), (None, None), (float("nan"), None)],
)
def test_a_field_of_an_answer_as_a_number(value: object, number: float | None) -> None:
    assert metric_of({"m": value}, "m") == number
    assert metric_of({"m": value}, "other") is None
    assert metric_of({"m": value}, None) is None
