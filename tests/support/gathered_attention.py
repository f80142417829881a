"""Attention of rows by themselves in torch's operations, which can be recorded, and which kernels are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as functional


def gathered_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    blocks: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """See ``attention.LoneAttention``; over copies of the keys and values, padded to the longest row's."""
    rows, heads, head_dim = query.shape
    kv_heads, value_dim = values.shape[2:]
    k, v = (kept[blocks.long()].flatten(1, 2).transpose(1, 2) for kept in (keys, values))
    context = torch.arange(k.shape[2], device=query.device)
    mask = context < lengths[:, None]
    if window is not None:
        mask = mask & (context >= lengths[:, None] - window)
    q = query.reshape(rows, kv_heads, heads // kv_heads, head_dim)
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], scale=scale)
    return out.reshape(rows, heads, value_dim)
