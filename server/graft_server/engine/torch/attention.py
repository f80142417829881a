"""Attention over a paged KV cache, as an attention function of transformers.

Any model of transformers that takes its attention from ``AttentionInterface`` runs on it unchanged: keys come here
already rotated, so the cache is the only state.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as functional
from transformers import AttentionInterface

from graft_server.engine.torch.batch import AttentionGroup, Batch

NAME = "graft_paged"


class KVCache:
    """Keys and values of every layer, ``[blocks, block_size, kv_heads, head_dim]`` each, made at a layer's first use
    (the model itself says how many heads it has)."""

    def __init__(self, blocks: int, block_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self._dtype = dtype
        self._device = device
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def layers(self) -> int:
        """How many layers have written so far."""
        return len(self._layers)

    @property
    def bytes_per_token(self) -> int:
        """Over the layers that have written so far."""
        pairs = (tensor for pair in self._layers.values() for tensor in pair)
        return sum(t.element_size() * t.shape[2] * t.shape[3] for t in pairs)

    def layer(self, index: int, kv_heads: int, key_dim: int, value_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index not in self._layers:
            shape = (self.blocks, self.block_size, kv_heads)
            options: dict[str, Any] = {"dtype": self._dtype, "device": self._device}
            self._layers[index] = (
                torch.zeros(*shape, key_dim, **options),
                torch.zeros(*shape, value_dim, **options),
            )
        return self._layers[index]


class LoneAttention(Protocol):
    """Attention of rows by themselves, as sequences that decode do.

    ``query``: ``[B, heads, head_dim]``; ``keys``, ``values``: a layer of the cache; ``blocks``: ``[B, L / block_size]``
    (int32); ``lengths``: ``[B]`` (int32), how many places of its blocks a row sees, or of them the last ``window``.
    Returns ``[B, heads, value_dim]``.
    """

    def __call__(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        blocks: torch.Tensor,
        lengths: torch.Tensor,
        *,
        scale: float,
        window: int | None,
    ) -> torch.Tensor: ...


class Step:
    """What a forward pass is running on: set before it, read by every attention layer inside it."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.batch: Batch | None = None
        #: Computes rows that attend by themselves; where it is missing, batches have none.
        self.lone: LoneAttention | None = None


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    graft_step: Step,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Write this step's keys and values, then attend over each sequence's blocks.

    ``query``: ``[1, heads, T, head_dim]``; ``key``, ``value``: ``[1, kv_heads, T, head_dim]``. Returns
    ``[1, T, heads, value_dim]``. Grouped-query heads (Ainslie et al. 2023) are folded into the query axis, so that keys
    are never copied per head.
    """
    batch = graft_step.batch
    assert batch is not None, "attention outside of a step"
    kv_heads, head_dim = key.shape[1], key.shape[3]
    value_dim = value.shape[3]
    heads, rows = query.shape[1], query.shape[2]
    fold = heads // kv_heads
    layer = module.layer_idx
    assert isinstance(layer, int)
    keys, values = graft_step.cache.layer(layer, kv_heads, head_dim, value_dim)
    keys.view(-1, kv_heads, head_dim).index_copy_(0, batch.places, key[0].transpose(0, 1))
    values.view(-1, kv_heads, value_dim).index_copy_(0, batch.places, value[0].transpose(0, 1))
    flat_query = query[0].transpose(0, 1)
    scale = head_dim**-0.5 if scaling is None else scaling
    output = query.new_empty(rows, heads, value_dim)
    if (lone := batch.lone) is not None:
        assert graft_step.lone is not None, "rows by themselves, and nothing that computes them"
        own = flat_query if lone.rows is None else flat_query[lone.rows]
        result = graft_step.lone(own, keys, values, lone.blocks, lone.lengths, scale=scale, window=sliding_window)
        if lone.rows is None:
            return result[None], None
        output[lone.rows] = result
    for group in batch.groups:
        size, queries = group.queries.shape
        # [B, L, kv_heads, D] -> [B, kv_heads, L, D]
        k = keys[group.blocks].flatten(1, 2).transpose(1, 2)
        v = values[group.blocks].flatten(1, 2).transpose(1, 2)
        q = flat_query[group.queries].view(size, queries, kv_heads, fold, head_dim)
        q = q.permute(0, 2, 3, 1, 4).reshape(size, kv_heads, fold * queries, head_dim)
        mask = group.mask
        if sliding_window is not None:
            mask = mask & _within(group, sliding_window)
        mask = mask[:, None].expand(size, fold, queries, -1).reshape(size, 1, fold * queries, -1)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        out = out.view(size, kv_heads, fold, queries, value_dim).permute(0, 3, 1, 2, 4)
        out = out.reshape(size * queries, heads, value_dim)
        output[group.rows] = out if len(group.cells) == len(out) else out[group.cells]
    return output[None], None


def _within(group: AttentionGroup, window: int) -> torch.Tensor:
    """``[B, Q, L]``: places at most ``window - 1`` positions before the query, whose own is the last it sees."""
    own = group.mask.to(torch.int32).cumsum(-1).argmax(-1)
    positions = group.positions
    if positions is None:
        return torch.arange(group.mask.shape[-1], device=group.mask.device) > own[..., None] - window
    return positions[:, None] > positions.gather(1, own)[..., None] - window


AttentionInterface.register(NAME, paged_attention)
