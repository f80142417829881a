"""All limits together: a request takes of every one that concerns it, or of none."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_client.schemas.limits import UNSET, Limits
from graft_server.quotas.ledger import Claim, Holding, Ledger, LimitError, Owner

limits = st.builds(
    Limits,
    requests_per_minute=st.none() | st.integers(0, 5),
    tokens_per_minute=st.none() | st.integers(0, 50),
    tokens_per_day=st.none() | st.integers(0, 200),
)
owners = st.sampled_from([Owner("key", "a"), Owner("key", "b"), Owner("adapter", "a")])
asks = st.tuples(st.lists(owners, min_size=1, max_size=3, unique=True), st.integers(0, 60), st.floats(0, 30))


@given(
    of=st.fixed_dictionaries(dict.fromkeys((Owner("key", "a"), Owner("key", "b"), Owner("adapter", "a")), limits)),
    asked=st.lists(asks, max_size=20),
)
def test_all_or_none(of: dict[Owner, Limits], asked: list[tuple[list[Owner], int, float]]) -> None:
    ledger, now = Ledger(), 0.0

    def left() -> dict[tuple[Owner, str, float], int]:
        return {
            (owner, rate.figure, rate.period): bucket.remaining(now)
            for owner in of
            for rate, bucket in ledger.buckets(Claim(owner, of[owner]), now)
        }

    holding: Holding | None = None
    for who, tokens, pause in asked:
        now += pause
        before = left()
        try:
            holding = ledger.reserve([Claim(owner, of[owner]) for owner in who], requests=1, tokens=tokens, now=now)
        except LimitError as error:
            refused = error
        else:
            refused = None
        if refused is not None:
            assert left() == before
            assert refused.owner in who
            assert refused.wanted > before[(refused.owner, refused.rate.figure, refused.rate.period)]
            assert (refused.retry_after is None) == (refused.wanted > refused.limit)
            continue
        taken = {key: before[key] - after for key, after in left().items()}
        for (owner, figure, _), units in taken.items():
            assert units == ((1 if figure == "requests" else tokens) if owner in who else 0)
        holding.settle(requests=0, tokens=0)
        assert left() == before


def test_a_limit_that_is_read_anew_and_as_it_was_in_turns_is_no_way_around_it() -> None:
    ledger, owner, let_through = Ledger(), Owner("key", "a"), 0
    for number in range(200):
        claim = Claim(owner, Limits(requests_per_minute=60 if number % 2 else 2))
        with contextlib.suppress(LimitError):
            ledger.reserve([claim], requests=1, tokens=0, now=0.0)
            let_through += 1
    assert let_through == 62


def test_without_limits_nothing_is_kept() -> None:
    ledger = Ledger()
    for number in range(5000):
        claim = Claim(Owner("key", str(number)), UNSET if number % 2 else Limits(tokens_per_minute=0))
        ledger.reserve([claim], requests=1, tokens=10**9, now=0.0)
    assert len(ledger) == 0


def test_buckets_that_are_full_again_are_forgotten() -> None:
    ledger = Ledger()
    of = Limits(requests_per_minute=1)
    busy = Claim(Owner("key", "busy"), Limits(tokens_per_day=10))
    ledger.reserve([busy], requests=1, tokens=10, now=0.0)
    for number in range(5000):
        claim = Claim(Owner("key", str(number)), of)
        ledger.reserve([claim], requests=1, tokens=1, now=float(number)).settle(requests=1, tokens=1)
    assert len(ledger) < 1500
    with pytest.raises(LimitError):
        ledger.reserve([busy], requests=1, tokens=10, now=5000.0)


def test_the_longest_wait_is_told() -> None:
    ledger = Ledger()
    claim = Claim(Owner("key", "a"), Limits(requests_per_minute=1, tokens_per_day=100))
    ledger.reserve([claim], requests=1, tokens=100, now=0.0)
    with pytest.raises(LimitError) as caught:
        ledger.reserve([claim], requests=1, tokens=100, now=0.0)
    assert (caught.value.rate.period_name, caught.value.retry_after) == ("day", pytest.approx(86400))
