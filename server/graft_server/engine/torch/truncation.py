"""Drawing from what temperature, top-k, top-p and min-p leave of a distribution.

Each of the three is a floor under probabilities: tokens that are equally likely stay or go together, and the draw
inverts the cumulative distribution in the order of token ids. So a row's token follows from its own logits and its own
random number alone, whatever order a sort gives to ties and whatever other rows there are.

The floor nearly always lies within the few likeliest tokens. Only rows where it does not have their whole distribution
sorted, which takes twenty times as long.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch

from graft_server.engine.base import SamplingParams

#: Likeliest tokens that are looked at first.
_HEAD = 256
#: Cells of the vocabulary that are accumulated at once, in fp64: what stays in a CPU's cache.
_CPU_CELLS = 1 << 18
_DEVICE_CELLS = 1 << 25


def draw_tokens(logits: torch.Tensor, params: Many[SamplingParams], uniform: torch.Tensor) -> torch.Tensor:
    """One token a row: ``[N, vocabulary]`` fp32 logits and ``[N]`` fp64 numbers in [0, 1) to ``[N]`` tokens."""
    temperature = torch.tensor([p.temperature for p in params], device=logits.device)
    probabilities = torch.softmax(logits / temperature[:, None], -1)
    tokens = torch.empty(len(params), dtype=torch.long, device=logits.device)
    floors = torch.zeros(len(params), device=logits.device)
    cuts = [p.top_k > 0 or p.top_p < 1 or p.min_p > 0 for p in params]
    cut = [row for row, cut in enumerate(cuts) if cut]
    whole = [row for row, cut in enumerate(cuts) if not cut]
    if cut:
        rows = torch.tensor(cut, device=logits.device)
        likeliest, ids = probabilities[rows].topk(min(_HEAD, logits.shape[-1]))
        floor, known = _floors(likeliest, [params[row] for row in cut], vocabulary=logits.shape[-1])
        inside = rows[known]
        if len(inside):
            ids, order = ids[known].sort(-1)
            kept = _above(likeliest[known], floor[known]).gather(-1, order)
            picked = _invert(kept, uniform[inside])
            tokens[inside] = ids.gather(-1, picked[:, None])[:, 0]
        outside = rows[~known]
        floors[outside] = floor[~known]
        whole += outside.tolist()
        # The floor of min-p alone needs the likeliest token only.
        ranked = [row for row in outside.tolist() if params[row].top_k > 0 or params[row].top_p < 1]
        if ranked:
            ordered = probabilities[ranked].sort(-1, descending=True).values
            floors[ranked] = _floors(ordered, [params[row] for row in ranked], vocabulary=logits.shape[-1])[0]
    cells = _CPU_CELLS if logits.device.type == "cpu" else _DEVICE_CELLS
    at_once = max(1, cells // logits.shape[-1])
    for at in range(0, len(whole), at_once):
        rows = torch.tensor(whole[at : at + at_once], device=logits.device)
        tokens[rows] = _invert(_above(probabilities[rows], floors[rows]), uniform[rows])
    return tokens


def _floors(
    likeliest: torch.Tensor, params: Many[SamplingParams], *, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The least probability that each row keeps, from its likeliest tokens (``[N, K]``, descending); and whether it is
    certain, which takes that every token to keep is among them.

    In transformers' order: top-k, then top-p of what is left of the mass, then min-p.
    """
    count, device = likeliest.shape[-1], likeliest.device
    top_k = torch.tensor([min(p.top_k or vocabulary, vocabulary) for p in params], device=device)
    top_p = torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device)
    min_p = torch.tensor([p.min_p for p in params], device=device)
    least = likeliest[:, -1]
    by_rank = likeliest.gather(-1, top_k.clamp_max(count)[:, None] - 1)[:, 0]
    by_rank = torch.where(top_k < vocabulary, by_rank, 0.0)
    kept = _above(likeliest, by_rank)
    mass = kept.cumsum(-1, dtype=torch.float64)
    total = torch.where(top_k < vocabulary, mass[:, -1], 1.0)
    # The shortest prefix that reaches the share: every token that has less than it before itself.
    reached = (mass - kept < (top_p * total)[:, None]) & (kept > 0)
    last = reached.sum(-1, keepdim=True).clamp_min(1) - 1
    by_mass = torch.where(top_p < 1, likeliest.gather(-1, last)[:, 0], 0.0)
    floor = torch.maximum(torch.maximum(by_rank, by_mass), min_p * likeliest[:, 0])
    all_seen = (least == 0) | (count == vocabulary)
    return floor, all_seen | ((least < floor) & ((top_k == vocabulary) | (least < by_rank)))


def _above(probabilities: torch.Tensor, floors: torch.Tensor) -> torch.Tensor:
    """``probabilities`` (``[N, K]``) with zero for all that are less than their row's floor."""
    return torch.where(probabilities >= floors[:, None], probabilities, 0.0)


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first index of each row (``[N, K]``) whose cumulative weight exceeds the given share of the total.

    In fp64, where a share below 1 of the total stays below the total: an index without weight is never drawn.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    wanted = uniform[:, None] * cumulative[:, -1:]
    # Beyond the last index only where the model's logits are not numbers.
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp_max(weights.shape[-1] - 1)
