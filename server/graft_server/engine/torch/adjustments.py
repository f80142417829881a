"""What a request changes about the model's logits before a token is drawn: bias, penalties, an end held back.

The rows of a step are changed together: the tokens that concern each row are laid behind one another as flat indices
into the logits, so that a step costs a few operations over those tokens, never one over the vocabulary.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable
from collections.abc import Sequence as Many
from typing import Any, Literal

import torch

from graft_server.engine.base import SamplingParams

#: Logit of an end that must wait. Finite, so that a constraint which allows nothing but the end still gets it.
_HELD_BACK = -1e30


class Adjustment:
    """What one request asks for, and the tokens it has seen so far."""

    def __init__(self, params: SamplingParams, prompt: Iterable[int], ends: Collection[int]) -> None:
        self.params = params
        self.generated = 0
        self.ends = array("q", ends if params.min_tokens else ())
        self.biased = array("q", params.logit_bias)
        self.biases = array("f", params.logit_bias.values())
        self.penalises = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0, 0)
        # Each token once: those of the prompt, where they count, with 0, those of the answer with their number.
        self.seen = array("q", dict.fromkeys(prompt) if params.repetition_penalty != 1.0 else ())
        self.counts = array("f", bytes(4 * len(self.seen)))
        self._places = {token: place for place, token in enumerate(self.seen)}

    @property
    def idle(self) -> bool:
        """Whether the request leaves its logits as they are, now and later."""
        return not (self.penalises or self.biased or self.ends)

    @property
    def holds_back(self) -> bool:
        """Whether the next token must not be an end."""
        return bool(self.ends) and self.generated < self.params.min_tokens

    def record(self, token: int) -> None:
        """Count a token of the answer."""
        self.generated += 1
        if not self.penalises:
            return
        place = self._places.setdefault(token, len(self.seen))
        if place == len(self.seen):
            self.seen.append(token)
            self.counts.append(0.0)
        self.counts[place] += 1


def adjust(logits: torch.Tensor, adjustments: Many[tuple[int, Adjustment]]) -> None:
    """Change rows of ``logits`` (``[N, vocabulary]`` fp32, contiguous) in place; each adjustment comes with its row."""
    flat = logits.view(-1)
    if biased := [(row, each) for row, each in adjustments if each.biased]:
        index, _ = _places(logits, [(row, each.biased) for row, each in biased])
        flat[index] += _joined("f", (each.biases for _, each in biased)).to(logits.device)
    if penalised := [(row, each) for row, each in adjustments if each.penalises and each.seen]:
        index, lengths = _places(logits, [(row, each.seen) for row, each in penalised])
        counts = _joined("f", (each.counts for _, each in penalised)).to(logits.device)

        def spread(values: list[float]) -> torch.Tensor:
            return torch.tensor(values).repeat_interleave(lengths).to(logits.device)

        repetition = spread([each.params.repetition_penalty for _, each in penalised])
        frequency = spread([each.params.frequency_penalty for _, each in penalised])
        presence = spread([each.params.presence_penalty for _, each in penalised])
        found = flat[index]
        found = torch.where(found < 0, found * repetition, found / repetition)
        flat[index] = found - frequency * counts - presence * (counts > 0)
    if waiting := [(row, each.ends) for row, each in adjustments if each.holds_back]:
        index, _ = _places(logits, waiting)
        flat[index] = flat[index].clamp_max(_HELD_BACK)


def _places(logits: torch.Tensor, tokens: Many[tuple[int, array[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat indices of tokens of rows, row behind row, and how many there are of each row (on the CPU)."""
    lengths = torch.tensor([len(ids) for _, ids in tokens])
    first = torch.tensor([row * logits.shape[-1] for row, _ in tokens]).repeat_interleave(lengths)
    return (first + _joined("q", (ids for _, ids in tokens))).to(logits.device), lengths


def _joined(code: Literal["q", "f"], parts: Iterable[array[Any]]) -> torch.Tensor:
    joined: array[Any] = array(code)
    for part in parts:
        joined.extend(part)
    return torch.frombuffer(joined, dtype=torch.long if code == "q" else torch.float32)
