"""What ``graft bench`` sends and when: the right distributions, and the same from the same seed."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice, pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_client.bench.arrivals import poisson
from graft_client.bench.popularity import shares
from graft_client.bench.workload import Length, Planned, workload

MODELS = [f"a{number}" for number in range(5)]


def drawn(count: int, **changed: Any) -> list[Planned]:
    fields = {
        "popularity": "zipf",
        "exponent": 1.0,
        "prompt_tokens": Length(1, 4),
        "output_tokens": Length(2, 9),
        "seed": 3,
    }
    return list(islice(workload(MODELS, **{**fields, **changed}), count))


@given(count=st.integers(1, 300), exponent=st.floats(0, 4))
def test_zipf_shares_fall_with_the_power_of_the_rank(count: int, exponent: float) -> None:
    found = shares("zipf", count, exponent)
    assert math.isclose(sum(found), 1)
    for rank, share in enumerate(found, start=1):
        assert math.isclose(share, found[0] / rank**exponent)


@given(count=st.integers(1, 300))
def test_uniform_shares_are_equal_as_are_those_of_zipf_with_exponent_0(count: int) -> None:
    assert shares("uniform", count, 2.0) == shares("zipf", count, 0.0)
    assert set(shares("uniform", count)) == {1 / count}


@pytest.mark.parametrize(("popularity", "exponent"), [("uniform", 1.0), ("zipf", 1.0), ("zipf", 2.0)])
def test_requests_fall_on_the_models_by_their_shares(popularity: str, exponent: float) -> None:
    count = 20_000
    asked = Counter(request.model for request in drawn(count, popularity=popularity, exponent=exponent))
    for model, share in zip(MODELS, shares(popularity, len(MODELS), exponent), strict=True):
        deviation = math.sqrt(count * share * (1 - share))
        assert abs(asked[model] - count * share) < 4 * deviation


def test_lengths_are_uniform_over_the_range_and_the_prompt_has_so_many_words() -> None:
    count = 8000
    requests = drawn(count)
    assert all(len(request.prompt.split()) == request.words for request in requests)
    for values, least, most in (
        ([request.words for request in requests], 1, 4),
        ([request.output_tokens for request in requests], 2, 9),
    ):
        sizes = Counter(values)
        assert sorted(sizes) == list(range(least, most + 1))
        share = 1 / len(sizes)
        assert all(abs(size - count * share) < 4 * math.sqrt(count * share) for size in sizes.values())


def test_a_seed_gives_the_same_requests_and_another_one_gives_others() -> None:
    assert drawn(50) == drawn(50)
    assert drawn(50) != drawn(50, seed=4)


def test_other_lengths_leave_the_order_of_the_models_as_it_was() -> None:
    longer = drawn(50, prompt_tokens=Length(90, 99), output_tokens=Length(7, 7))
    assert [request.model for request in longer] == [request.model for request in drawn(50)]


def test_prompts_share_no_beginning() -> None:
    prompts = [request.prompt for request in drawn(200, prompt_tokens=Length(32, 32))]
    assert len({" ".join(prompt.split()[:6]) for prompt in prompts}) == len(prompts)


@pytest.mark.parametrize(("text", "least", "most"), [("7", 7, 7), ("32-256", 32, 256), (" 5-5 ", 5, 5)])
def test_lengths_are_read(text: str, least: int, most: int) -> None:
    assert Length.parse(text) == Length(least, most)


@pytest.mark.parametrize("text", ["", "0", "0-4", "9-3", "-4", "1-2-3", "many", "1.5"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"`{text}`"):
        Length.parse(text)


@pytest.mark.parametrize("rate", [0.5, 40.0])
def test_arrivals_are_a_poisson_process(rate: float) -> None:
    """Gaps with the mean and the deviation of the exponential distribution, and its share above the mean, 1/e."""
    count = 20_000
    times = list(islice(poisson(rate, Random(5)), count))
    assert times == sorted(times)
    gaps = [after - before for before, after in pairwise([0.0, *times])]
    mean = sum(gaps) / count
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / count)
    assert mean == pytest.approx(1 / rate, rel=0.03)
    assert deviation == pytest.approx(1 / rate, rel=0.04)
    assert sum(gap > 1 / rate for gap in gaps) / count == pytest.approx(math.exp(-1), abs=0.015)
    # Independent: a gap says nothing of the next one.
    together = sum((a - mean) * (b - mean) for a, b in pairwise(gaps)) / count
    assert abs(together) < 0.03 * deviation**2
