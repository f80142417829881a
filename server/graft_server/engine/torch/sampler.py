"""From the logits of a step to its tokens, with their log-probabilities.

A row's token depends on its own logits and its own random numbers alone, never on what else is in the batch: one
uniform number a token from the request's own generator. Rows that ask for nothing special cost one argmax.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from random import Random

import torch

from graft_server.engine.base import SamplingParams
from graft_server.engine.torch.adjustments import Adjustment, adjust
from graft_server.engine.torch.truncation import draw_tokens

#: Below this a temperature is 0: logits over it would leave fp32's range.
_LEAST_TEMPERATURE = 1e-5


class Draw:
    """How one request draws, with its own random numbers and the tokens it has seen."""

    def __init__(self, params: SamplingParams, *, prompt: Iterable[int] = (), ends: Collection[int] = ()) -> None:
        """``ends`` are the tokens that end the answer, which ``min_tokens`` holds back."""
        self.params = params
        self.greedy = params.temperature < _LEAST_TEMPERATURE
        self.random = Random(None if params.seed is None else params.seed & 0xFFFF_FFFF_FFFF_FFFF)
        adjustment = Adjustment(params, prompt, ends)
        self.adjustment = None if adjustment.idle else adjustment

    def record(self, token: int) -> None:
        """Tell which token the answer goes on with; the next one may depend on it."""
        if self.adjustment is not None:
            self.adjustment.record(token)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token, its natural-log probability where it was asked for, and the likeliest alternatives."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@torch.inference_mode()
def sample(logits: torch.Tensor, draws: Many[Draw]) -> list[Drawn]:
    """One token a row. ``logits``: ``[N, vocabulary]``, any float type; fp32 is changed in place."""
    logits = logits.float().contiguous()
    if logits.device.type == "mps":  # which has no fp64
        logits = logits.cpu()
    told = [row for row, draw in enumerate(draws) if draw.params.logprobs is not None]
    logprobs = torch.log_softmax(logits[told], -1) if told else None
    adjustments = [(row, draw.adjustment) for row, draw in enumerate(draws) if draw.adjustment is not None]
    if adjustments:
        adjust(logits, adjustments)
    chosen = _choose(logits, draws)
    drawn = [Drawn(token) for token in chosen.tolist()]
    if logprobs is not None:
        for row, logprob, top in zip(told, *_report(logprobs, chosen[told], [draws[row] for row in told]), strict=True):
            drawn[row] = Drawn(drawn[row].token, logprob, top)
    return drawn


def _choose(logits: torch.Tensor, draws: Many[Draw]) -> torch.Tensor:
    random = [row for row, draw in enumerate(draws) if not draw.greedy]
    if not random:
        return logits.argmax(-1)
    params = [draws[row].params for row in random]
    numbers = [draws[row].random.random() for row in random]
    uniform = torch.tensor(numbers, dtype=torch.float64, device=logits.device)
    if len(random) == len(draws):
        return draw_tokens(logits, params, uniform)
    chosen = logits.argmax(-1)
    rows = torch.tensor(random, device=logits.device)
    chosen[rows] = draw_tokens(logits[rows], params, uniform)
    return chosen


def _report(
    logprobs: torch.Tensor, chosen: torch.Tensor, draws: Many[Draw]
) -> tuple[list[float], list[tuple[tuple[int, float], ...]]]:
    """The log-probability of each row's token, and as many alternatives as it asks for."""
    own = logprobs.gather(-1, chosen[:, None])[:, 0].tolist()
    counts = [min(draw.params.logprobs or 0, logprobs.shape[-1]) for draw in draws]
    values, ids = logprobs.topk(max(counts))
    rows = zip(counts, ids.tolist(), values.tolist(), strict=True)
    return own, [tuple(zip(tokens[:count], likeliest[:count], strict=True)) for count, tokens, likeliest in rows]
