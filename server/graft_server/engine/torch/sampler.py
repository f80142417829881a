"""Drawing tokens from logits: temperature, top-k, top-p, and log-probabilities.

A sampled row depends on its own seed and step alone, never on what else is in the batch: one uniform number a token
from the request's own generator, turned into a token by inverting the cumulative distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from graft_server.engine.base import SamplingParams


@dataclass(slots=True, eq=False)
class Draw:
    """How one request draws, with its own random numbers."""

    params: SamplingParams
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        if self.params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.params.seed & 0x7FFF_FFFF_FFFF_FFFF)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token, its natural-log probability under the untempered model where it was asked for, and the likeliest
    alternatives."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def sample(logits: torch.Tensor, draws: Sequence[Draw]) -> list[Drawn]:
    """One token a row. ``logits``: ``[N, vocabulary]``, any float type."""
    logits = logits.float()
    tokens = logits.argmax(-1)
    random_rows = [i for i, draw in enumerate(draws) if draw.params.temperature > 0]
    if random_rows:
        params = [draws[i].params for i in random_rows]
        uniform = torch.cat([torch.rand(1, generator=draws[i].generator) for i in random_rows])
        rows = torch.tensor(random_rows, device=logits.device)
        tokens[rows] = _draw(logits[rows], params, uniform.to(logits.device))
    chosen = tokens.tolist()
    asked = [i for i, draw in enumerate(draws) if draw.params.logprobs is not None]
    result = [Drawn(token) for token in chosen]
    if asked:
        logprobs = torch.log_softmax(logits[asked], -1)
        for row, i in enumerate(asked):
            count = draws[i].params.logprobs or 0
            values, ids = logprobs[row].topk(count) if count else (logprobs.new_empty(0), logprobs.new_empty(0))
            top = tuple(zip((int(t) for t in ids.tolist()), values.tolist(), strict=True))
            result[i] = Drawn(chosen[i], float(logprobs[row, chosen[i]]), top)
    return result


def _draw(logits: torch.Tensor, params: Sequence[SamplingParams], uniform: torch.Tensor) -> torch.Tensor:
    """``[N, vocabulary]`` and one number in [0, 1) a row to ``[N]`` tokens."""
    device = logits.device
    temperature = torch.tensor([p.temperature for p in params], device=device)
    probabilities = torch.softmax(logits / temperature[:, None], -1)
    if all(p.top_k == 0 and p.top_p >= 1.0 for p in params):
        cumulative = probabilities.cumsum(-1)
        return _invert(cumulative, uniform)
    # Sorted once for both: top-k keeps a prefix, top-p the shortest prefix that reaches its mass.
    ordered, ids = probabilities.sort(-1, descending=True)
    vocabulary = logits.shape[-1]
    top_k = torch.tensor([p.top_k or vocabulary for p in params], device=device)
    top_p = torch.tensor([p.top_p for p in params], device=device)
    ordered = ordered * (torch.arange(vocabulary, device=device) < top_k[:, None])
    ordered = ordered / ordered.sum(-1, keepdim=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered * (before < top_p[:, None])
    picked = _invert(ordered.cumsum(-1), uniform)
    return ids.gather(-1, picked[:, None])[:, 0]


def _invert(cumulative: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative mass exceeds the given share of the row's total."""
    wanted = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp_max(cumulative.shape[-1] - 1)
