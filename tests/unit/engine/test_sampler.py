"""Drawing tokens: the distributions that come out are the ones that were asked for."""

from __future__ import annotations

from typing import Any

import pytest

from graft_server.engine.base import SamplingParams

pytestmark = pytest.mark.torch


def draw(logits: list[float], count: int = 4000, **params: Any) -> dict[int, float]:
    """Shares of each token over ``count`` rows with seeds of their own."""
    import torch

    from graft_server.engine.torch.sampler import Draw, sample

    rows = torch.tensor([logits] * count)
    draws = [Draw(SamplingParams(seed=seed, **params)) for seed in range(count)]
    tokens = [drawn.token for drawn in sample(rows, draws)]
    return {token: tokens.count(token) / count for token in sorted(set(tokens))}


def test_greedy_takes_the_likeliest() -> None:
    assert draw([0.0, 2.0, 1.0], count=3) == {1: 1.0}


def test_temperature_one_draws_from_the_softmax() -> None:
    import math

    shares = draw([0.0, 1.0, 2.0], temperature=1.0)
    total = sum(math.exp(x) for x in (0, 1, 2))
    for token, logit in enumerate((0, 1, 2)):
        assert shares[token] == pytest.approx(math.exp(logit) / total, abs=0.03)


def test_top_k_keeps_the_k_likeliest() -> None:
    assert set(draw([0.0, 1.0, 2.0, 1.5], temperature=2.0, top_k=2)) == {2, 3}


def test_top_p_keeps_the_shortest_prefix_that_reaches_the_mass() -> None:
    # Probabilities 0.5, 0.3, 0.2: 0.6 needs two tokens, 0.4 one.
    import math

    logits = [math.log(0.5), math.log(0.3), math.log(0.2)]
    assert set(draw(logits, temperature=1.0, top_p=0.6)) == {0, 1}
    assert set(draw(logits, temperature=1.0, top_p=0.4)) == {0}


def test_rows_of_one_batch_keep_their_own_rules() -> None:
    import torch

    from graft_server.engine.torch.sampler import Draw, sample

    logits = torch.tensor([[0.0, 3.0, 2.9]] * 3)
    draws = [
        Draw(SamplingParams()),
        Draw(SamplingParams(temperature=1.0, top_k=1, seed=1)),
        Draw(SamplingParams(temperature=1.0, seed=5, logprobs=2)),
    ]
    drawn = sample(logits, draws)
    assert [d.token for d in drawn[:2]] == [1, 1]
    assert drawn[0].logprob is None
    assert drawn[2].logprob is not None
    assert [token for token, _ in drawn[2].top] == [1, 2]


def test_unseeded_requests_differ() -> None:
    import torch

    from graft_server.engine.torch.sampler import Draw, sample

    logits = torch.zeros(50, 1000)
    tokens = [d.token for d in sample(logits, [Draw(SamplingParams(temperature=1.0)) for _ in range(50)])]
    assert len(set(tokens)) > 10
