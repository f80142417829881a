"""Tokenised rows, and batches of them as tensors: padded on the right, with the positions that are answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A prompt and its answer, in one list of token ids; the answer begins at ``answer_start``."""

    ids: tuple[int, ...]
    answer_start: int


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows as tensors on the training device."""

    #: ``[rows, longest]``
    input_ids: torch.Tensor
    #: ``[answer tokens]``: positions in the flattened batch that predict an answer token.
    positions: torch.Tensor
    #: ``[answer tokens]``: the token that each of them predicts.
    targets: torch.Tensor
    #: Tokens without padding.
    tokens: int


def collate(rows: Sequence[TokenRow], device: Any) -> TokenBatch:
    """Rows as one batch. Padding lies on the right, where causal attention never sees it: any token will do."""
    longest = max(len(row.ids) for row in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    positions: list[int] = []
    targets: list[int] = []
    for index, row in enumerate(rows):
        input_ids[index, : len(row.ids)] = torch.tensor(row.ids)
        # The first token of a text has nothing in front of it that could predict it.
        start = max(row.answer_start, 1)
        offset = index * longest - 1
        positions.extend(range(offset + start, offset + len(row.ids)))
        targets.extend(row.ids[start:])
    return TokenBatch(
        input_ids.to(device),
        torch.tensor(positions, device=device),
        torch.tensor(targets, device=device),
        sum(len(row.ids) for row in rows),
    )
