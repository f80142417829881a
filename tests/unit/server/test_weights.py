"""Where keys go: shares as the weights say, the same key always to the same target, and no more moves than needed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_client.schemas.routes import RouteTarget
from graft_server.routing.weights import pick

KEYS = [f"user-{number}" for number in range(4000)]


def targets(**weights: float) -> list[RouteTarget]:
    return [RouteTarget(ref=ref, weight=weight) for ref, weight in weights.items()]


def where(weights: list[RouteTarget]) -> dict[str, str]:
    return {key: pick("go", weights, key).ref for key in KEYS}


def test_shares_are_as_the_weights_say() -> None:
    counts = Counter(where(targets(a=90, b=9, c=1, d=0)).values())
    assert counts["a"] / len(KEYS) == pytest.approx(0.90, abs=0.015)
    assert counts["b"] / len(KEYS) == pytest.approx(0.09, abs=0.015)
    assert counts["c"] > 0
    assert "d" not in counts


def test_more_weight_moves_keys_to_the_canary_alone() -> None:
    before, after = where(targets(a=90, b=10)), where(targets(a=70, b=30))
    moved = {(before[key], after[key]) for key in KEYS if before[key] != after[key]}
    assert moved == {("a", "b")}


@given(
    st.lists(st.integers(0, 100), min_size=1, max_size=8).filter(any),
    st.text(max_size=20),
    st.randoms(use_true_random=False),
)
def test_the_order_of_targets_means_nothing_and_no_weight_means_no_request(weights, key, random) -> None:
    found = [RouteTarget(ref=f"x@{number}", weight=weight) for number, weight in enumerate(weights)]
    chosen = pick("go", found, key)
    assert chosen.weight > 0
    random.shuffle(found)
    assert pick("go", found, key) == chosen


def test_routes_do_not_share_their_canaries_users() -> None:
    weights = targets(a=50, b=50)
    same = sum(pick("one", weights, key) == pick("two", weights, key) for key in KEYS)
    assert same / len(KEYS) == pytest.approx(0.5, abs=0.05)
