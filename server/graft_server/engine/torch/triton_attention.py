"""Attention of rows by themselves over a paged KV cache, as Triton kernels.

Keys and values are read where they lie, and no more of them than a sequence has (PagedAttention: Kwon et al. 2023); a
long context is divided among programs, whose results are put together by their softmax sums (Flash-Decoding: Dao et
al. 2023). The query heads that share keys are one product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from graft_server.engine.torch.triton_shapes import padded_side, product_precision

#: Programs that fill a GPU, about; and the least of a context that is worth one of its own.
_PROGRAMS = 512
_LEAST_PART = 256
#: Places that a program looks at together, and its warps: where there are many programs, and where there are few.
_MANY = (64, 2)
_FEW = (128, 4)


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query, keys, values, blocks, lengths, output, partial, weights, scale, window, table_width,
    rows, kv_heads, fold, head_dim, value_dim, block_size,
    part_places, divided: tl.constexpr, round_: tl.constexpr,
    padded_fold: tl.constexpr, padded_head: tl.constexpr, padded_value: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = tl.program_id(1)
    part = tl.program_id(2)
    length = tl.load(lengths + row)
    first = tl.maximum(length - window, 0)
    begin = tl.maximum(part * part_places, first // round_ * round_)
    end = tl.minimum((part + 1) * part_places, length)
    f = tl.arange(0, padded_fold)
    d = tl.arange(0, padded_head)
    v = tl.arange(0, padded_value)
    own = (row * kv_heads + head) * fold + f
    q = tl.load(
        query + own[:, None] * head_dim + d[None, :], mask=(f < fold)[:, None] & (d < head_dim)[None, :], other=0.0
    )
    largest = tl.full((padded_fold,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((padded_fold,), dtype=tl.float32)
    result = tl.zeros((padded_fold, padded_value), dtype=tl.float32)
    for start in range(begin, end, round_):
        place = start + tl.arange(0, round_)
        seen = (place < end) & (place >= first)
        block = tl.load(blocks + row * table_width + place // block_size, mask=place < end, other=0).to(tl.int64)
        at = (block * block_size + place % block_size) * kv_heads + head
        k = tl.load(keys + at[None, :] * head_dim + d[:, None], mask=seen[None, :] & (d < head_dim)[:, None], other=0.0)
        scores = tl.where(seen[None, :], tl.dot(q, k, input_precision=precision) * scale, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, axis=1))
        shares = tl.exp(scores - higher[:, None])
        before = tl.exp(largest - higher)
        total = total * before + tl.sum(shares, axis=1)
        w = tl.load(
            values + at[:, None] * value_dim + v[None, :], mask=seen[:, None] & (v < value_dim)[None, :], other=0.0
        )
        result = result * before[:, None] + tl.dot(shares.to(w.dtype), w, input_precision=precision)
        largest = higher
    inside = (f < fold)[:, None] & (v < value_dim)[None, :]
    if not divided:
        place = own[:, None] * value_dim + v[None, :]
        tl.store(output + place, (result / total[:, None]).to(output.dtype.element_ty), mask=inside)
    else:
        own += part * rows * kv_heads * fold
        tl.store(partial + own[:, None] * value_dim + v[None, :], result, mask=inside)
        tl.store(weights + 2 * own, largest, mask=f < fold)
        tl.store(weights + 2 * own + 1, total, mask=f < fold)


@triton.jit  # type: ignore[untyped-decorator]
def _combine(  # type: ignore[no-untyped-def]
    output, partial, weights, count, value_dim, parts, padded_parts: tl.constexpr, padded_value: tl.constexpr,
):  # fmt: skip
    own = tl.program_id(0)
    part = tl.arange(0, padded_parts)
    v = tl.arange(0, padded_value)
    at = part * count + own
    largest = tl.load(weights + 2 * at, mask=part < parts, other=float("-inf"))
    shares = tl.exp(largest - tl.max(largest, axis=0))
    total = tl.sum(shares * tl.load(weights + 2 * at + 1, mask=part < parts, other=0.0), axis=0)
    results = tl.load(
        partial + at[:, None] * value_dim + v[None, :],
        mask=(part < parts)[:, None] & (v < value_dim)[None, :],
        other=0.0,
    )
    result = tl.sum(shares[:, None] * results, axis=0) / total
    tl.store(output + own * value_dim + v, result.to(output.dtype.element_ty), mask=v < value_dim)


def triton_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    blocks: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """See ``attention.LoneAttention``."""
    query = query.contiguous()
    rows, heads, head_dim = query.shape
    block_size, kv_heads, value_dim = values.shape[1:]
    fold = heads // kv_heads
    context = blocks.shape[1] * block_size
    parts = max(1, min(triton.cdiv(_PROGRAMS, rows * kv_heads), triton.cdiv(context, _LEAST_PART)))
    round_, warps = _MANY if parts == 1 else _FEW
    part_places = triton.cdiv(triton.cdiv(context, parts), round_) * round_
    parts = triton.cdiv(context, part_places)
    output = query.new_empty(rows, heads, value_dim)
    divided = (parts, rows, heads) if parts > 1 else (0, 0, 0)
    partial = torch.empty(*divided, value_dim, dtype=torch.float32, device=query.device)
    weights = torch.empty(*divided, 2, dtype=torch.float32, device=query.device)
    padded_value = padded_side(value_dim)
    _attend[rows, kv_heads, parts](
        query, keys, values, blocks, lengths, output, partial, weights, scale,
        context if window is None else window, blocks.shape[1],
        rows, kv_heads, fold, head_dim, value_dim, block_size,
        part_places, parts > 1, round_, padded_side(fold), padded_side(head_dim), padded_value,
        product_precision(query), num_warps=warps,
    )  # fmt: skip
    if parts > 1:
        padded_parts = int(triton.next_power_of_2(parts))
        _combine[(rows * heads,)](output, partial, weights, rows * heads, value_dim, parts, padded_parts, padded_value)
    return output
