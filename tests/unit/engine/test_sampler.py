"""Drawing tokens: the distributions that come out are the ones that were asked for, whatever else is in the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_server.engine.base import SamplingParams

pytestmark = pytest.mark.torch


def shares(logits: list[float], count: int = 4000, **params: Any) -> dict[int, float]:
    """Shares of each token over ``count`` rows with seeds of their own."""
    import torch

    from graft_server.engine.torch.sampler import Draw, sample

    rows = torch.tensor([logits] * count)
    draws = [Draw(SamplingParams(seed=seed, **params)) for seed in range(count)]
    tokens = [drawn.token for drawn in sample(rows, draws)]
    return {token: tokens.count(token) / count for token in sorted(set(tokens))}


def adjusted(logits: Any, params: SamplingParams, prompt: Sequence[int] = (), answer: Sequence[int] = ()) -> Any:
    """One row of logits as ``sample`` sees them behind bias and penalties."""
    from graft_server.engine.torch.adjustments import Adjustment, adjust

    adjustment = Adjustment(params, prompt, ends=(1, 2))
    for token in answer:
        adjustment.record(token)
    rows = logits.clone()[None].repeat(3, 1)
    adjust(rows, [(1, adjustment)])
    assert rows[0].equal(logits)
    assert rows[2].equal(logits)
    return rows[1]


def kept(logits: Any, params: SamplingParams) -> set[int]:
    """The tokens that can be drawn at all, found by drawing at many places of the distribution."""
    import torch

    from graft_server.engine.torch.truncation import draw_tokens

    count = 20_000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return set(draw_tokens(logits[None].repeat(count, 1), [params] * count, uniform).tolist())


def test_greedy_takes_the_likeliest() -> None:
    assert shares([0.0, 2.0, 1.0], count=3) == {1: 1.0}


@pytest.mark.parametrize("temperature", [1e-5, 1e-9, 1e-40])
def test_a_temperature_close_to_zero_is_greedy(temperature: float) -> None:
    assert shares([-30.0, 20.0, 19.9, -math.inf], count=50, temperature=temperature) == {1: 1.0}


def test_temperature_one_draws_from_the_softmax() -> None:
    found = shares([0.0, 1.0, 2.0], temperature=1.0)
    total = sum(math.exp(x) for x in (0, 1, 2))
    for token, logit in enumerate((0, 1, 2)):
        assert found[token] == pytest.approx(math.exp(logit) / total, abs=0.03)


def test_top_k_keeps_the_k_likeliest() -> None:
    assert set(shares([0.0, 1.0, 2.0, 1.5], temperature=2.0, top_k=2)) == {2, 3}


def test_top_p_keeps_the_shortest_prefix_that_reaches_the_mass() -> None:
    # Probabilities 0.5, 0.3, 0.2: 0.6 needs two tokens, 0.4 one.
    logits = [math.log(0.5), math.log(0.3), math.log(0.2)]
    assert set(shares(logits, temperature=1.0, top_p=0.6)) == {0, 1}
    assert set(shares(logits, temperature=1.0, top_p=0.4)) == {0}


def test_min_p_keeps_what_is_near_the_likeliest() -> None:
    logits = [math.log(0.5), math.log(0.3), math.log(0.2)]
    assert set(shares(logits, temperature=1.0, min_p=0.5)) == {0, 1}
    assert set(shares(logits, temperature=1.0, min_p=1.0)) == {0}


def test_equally_likely_tokens_stay_or_go_together() -> None:
    assert set(shares([3.0, 1.0, 1.0, 1.0, 0.0], temperature=1.0, top_k=2)) == {0, 1, 2, 3}


def test_what_is_left_keeps_its_proportions() -> None:
    logits = [math.log(x) for x in (0.4, 0.3, 0.2, 0.1)]
    found = shares(logits, temperature=1.0, top_k=2)
    assert found == {0: pytest.approx(4 / 7, abs=0.03), 1: pytest.approx(3 / 7, abs=0.03)}


@pytest.mark.parametrize("scale", [0.05, 1.0, 4.0])
@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": 400},
        {"top_k": 5000},
        {"top_p": 0.5},
        {"top_p": 0.9},
        {"top_p": 0.999},
        {"min_p": 0.05},
        {"min_p": 0.7},
        {"top_k": 300, "top_p": 0.9},
        {"top_k": 20, "top_p": 0.8, "min_p": 0.2},
    ],
    ids=str,
)
def test_top_k_top_p_and_min_p_keep_what_transformers_keeps(params: dict[str, Any], scale: float) -> None:
    """Over distributions from flat, where whole rows are sorted, to steep."""
    import torch
    from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * scale
    expected = logits[None] / 0.8
    warpers: list[Callable[[Any, Any], Any]] = []
    if "top_k" in params:
        warpers.append(TopKLogitsWarper(params["top_k"]))
    if "top_p" in params:
        warpers.append(TopPLogitsWarper(params["top_p"]))
    if "min_p" in params:
        warpers.append(MinPLogitsWarper(params["min_p"]))
    for warper in warpers:
        expected = warper(None, expected)
    allowed = {i for i, value in enumerate(expected[0].tolist()) if value > -math.inf}
    found = kept(logits, SamplingParams(temperature=0.8, **params))
    assert found <= allowed
    # Tokens that are too unlikely for the places that were tried may be missing.
    likely = torch.softmax(expected[0].double(), -1) > 1e-4
    assert {i for i in allowed if likely[i]} <= found


def reference(logits: Any, params: SamplingParams, uniform: float) -> int:
    """The definition, with a sort of everything and no batch."""
    import torch

    probabilities = torch.softmax(logits / params.temperature, -1)
    ordered = probabilities.sort(descending=True).values
    if params.top_k:
        probabilities = torch.where(probabilities >= ordered[min(params.top_k, len(ordered)) - 1], probabilities, 0.0)
    if params.top_p < 1:
        ordered = probabilities.sort(descending=True).values
        mass = ordered.double().cumsum(0)
        total = mass[-1] if params.top_k else 1.0
        last = max(i for i in range(len(ordered)) if mass[i] - ordered[i] < params.top_p * total and ordered[i] > 0)
        probabilities = torch.where(probabilities >= ordered[last], probabilities, 0.0)
    probabilities = torch.where(probabilities >= params.min_p * probabilities.max(), probabilities, 0.0)
    mass = probabilities.double().cumsum(0)
    return int((mass > uniform * mass[-1]).nonzero()[0])


rules = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.01, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 50, 256, 257, 400, 10_000]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 0.99, 0.999999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.8, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.5, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.5]),
    logit_bias=st.dictionaries(st.integers(0, 299), st.sampled_from([-100.0, 2.0, 100.0]), max_size=3),
    min_tokens=st.sampled_from([0, 0, 2, 9]),
    seed=st.integers(-(2**63), 2**63 - 1),
)


def rows_of(vocabulary: int, count: int, seed: int, scale: float) -> Any:
    """Logits as a bf16 model gives them: full of ties."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, vocabulary, generator=generator) * scale).bfloat16().float()


@settings(max_examples=150, deadline=None)
@given(
    params=rules.filter(lambda p: p.temperature > 0),
    vocabulary=st.sampled_from([300, 1000]),
    scale=st.sampled_from([0.1, 2.0, 20.0]),
    seed=st.integers(0, 10_000),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_a_draw_is_the_definitions(
    params: SamplingParams, vocabulary: int, scale: float, seed: int, uniform: float
) -> None:
    import torch

    from graft_server.engine.torch.truncation import draw_tokens

    logits = rows_of(vocabulary, 1, seed, scale)
    token = draw_tokens(logits, [params], torch.tensor([uniform], dtype=torch.float64))
    assert token.tolist() == [reference(logits[0], params, uniform)]


def told(vocabulary: int, params: SamplingParams, seed: int) -> Any:
    """A draw in the middle of an answer."""
    from graft_server.engine.torch.sampler import Draw

    draw = Draw(params, prompt=[seed % vocabulary, 5, 5, 7], ends=(1, 2))
    for token in (5, 9, 9, (3 * seed) % vocabulary):
        draw.record(token)
    return draw


@settings(max_examples=150, deadline=None)
@given(
    params=st.lists(rules, min_size=2, max_size=8),
    vocabulary=st.sampled_from([300, 1000, 49_152]),
    scale=st.sampled_from([0.1, 2.0, 20.0]),
    seed=st.integers(0, 10_000),
)
def test_a_row_alone_and_among_others_gives_the_same_token(
    params: list[SamplingParams], vocabulary: int, scale: float, seed: int
) -> None:
    from graft_server.engine.torch.sampler import sample

    logits = rows_of(vocabulary, len(params), seed, scale)
    alone = [
        sample(logits[i : i + 1].clone(), [told(vocabulary, each, seed)])[0].token for i, each in enumerate(params)
    ]
    together = sample(logits.clone(), [told(vocabulary, each, seed) for each in params])
    assert [drawn.token for drawn in together] == alone


def test_a_seed_repeats_its_tokens_and_another_does_not() -> None:
    import torch

    from graft_server.engine.torch.sampler import Draw, sample

    def answer(seed: int) -> list[int]:
        draw = Draw(SamplingParams(temperature=1.0, seed=seed))
        return [sample(torch.zeros(1, 1000), [draw])[0].token for _ in range(8)]

    assert answer(7) == answer(7)
    assert len({tuple(answer(seed)) for seed in (7, 8, -7, 2**63 - 1)}) == 4


def test_unseeded_requests_differ() -> None:
    import torch

    from graft_server.engine.torch.sampler import Draw, sample

    logits = torch.zeros(50, 1000)
    tokens = [d.token for d in sample(logits, [Draw(SamplingParams(temperature=1.0)) for _ in range(50)])]
    assert len(set(tokens)) > 10


@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_the_repetition_penalty_is_transformers(penalty: float) -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(100, generator=torch.Generator().manual_seed(0)) * 3
    logits[4] = -math.inf
    prompt, answer = [1, 4, 4, 17, 99], [17, 3, 3, 0]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + answer]), logits[None])[0]
    assert adjusted(logits, SamplingParams(repetition_penalty=penalty), prompt, answer).equal(expected)


def test_presence_and_frequency_count_the_answer_alone() -> None:
    import torch

    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    changed = adjusted(torch.zeros(6), params, prompt=[0, 1, 1], answer=[1, 3, 3, 3])
    assert changed.tolist() == [0, -0.75, 0, -1.25, 0, 0]


def test_bias_comes_before_penalties_as_in_transformers_and_vllm() -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor
    from transformers.generation.logits_process import SequenceBiasLogitsProcessor

    logits = torch.tensor([-1.0, 2.0, 0.5, -4.0])
    ids = torch.tensor([[0, 1, 3]])
    expected = SequenceBiasLogitsProcessor({(0,): 3.0, (1,): -100.0, (2,): 1.0})(ids, logits[None])
    expected = RepetitionPenaltyLogitsProcessor(1.5)(ids, expected)[0]
    params = SamplingParams(logit_bias={0: 3.0, 1: -100.0, 2: 1.0}, repetition_penalty=1.5)
    assert adjusted(logits, params, prompt=[0, 1], answer=[3]).equal(expected)


def test_an_end_waits_for_min_tokens() -> None:
    import torch

    from graft_server.engine.torch.sampler import Draw, sample

    draw = Draw(SamplingParams(min_tokens=2), ends=(1, 2))
    tokens = []
    for _ in range(4):
        tokens.append(sample(torch.tensor([[0.0, 5.0, 4.0, 1.0]]), [draw])[0].token)
        draw.record(tokens[-1])
    assert tokens == [3, 3, 1, 1]


def test_an_end_that_is_all_a_constraint_allows_does_not_wait() -> None:
    import torch

    from graft_server.engine.torch.sampler import Draw, sample

    logits = torch.tensor([[-math.inf, 5.0, -math.inf, -math.inf]])
    for temperature in (0.0, 1.0):
        draw = Draw(SamplingParams(min_tokens=2, temperature=temperature, repetition_penalty=2.0), ends=(1, 2))
        assert sample(logits.clone(), [draw])[0].token == 1


def test_rows_of_one_batch_keep_their_own_rules() -> None:
    import torch

    from graft_server.engine.torch.sampler import Draw, sample

    logits = torch.tensor([[0.0, 3.0, 2.9]] * 4)
    draws = [
        Draw(SamplingParams()),
        Draw(SamplingParams(temperature=1.0, top_k=1, seed=1)),
        Draw(SamplingParams(temperature=1.0, seed=5, logprobs=2)),
        Draw(SamplingParams(logit_bias={1: -100.0})),
    ]
    drawn = sample(logits, draws)
    assert [d.token for d in drawn[:2]] == [1, 1]
    assert drawn[0].logprob is None
    assert drawn[2].logprob is not None
    assert [token for token, _ in drawn[2].top] == [1, 2]
    assert drawn[3].token == 2


def test_logprobs_are_those_before_bias_penalties_and_temperature() -> None:
    import torch

    from graft_server.engine.torch.sampler import Draw, sample

    logits = torch.tensor([[0.0, 3.0, 2.0], [1.0, 1.0, 5.0]])
    expected = torch.log_softmax(logits, -1).tolist()
    draws = [
        Draw(SamplingParams(logprobs=0, temperature=0.1, logit_bias={0: 100.0})),
        Draw(SamplingParams(logprobs=3, presence_penalty=2.0)),
    ]
    first, second = sample(logits, draws)
    assert (first.token, first.logprob, first.top) == (0, pytest.approx(expected[0][0]), ())
    assert second.logprob == pytest.approx(expected[1][2])
    assert dict(second.top) == pytest.approx(dict(enumerate(expected[1])))
