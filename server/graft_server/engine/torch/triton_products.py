"""The products of ``indexed.py`` as two Triton kernels (shrink and expand of Punica: Chen et al. 2023).

A program of the first multiplies a part of one row by its adapter's weights; one of the second takes the sum of the
parts to some of the outputs. Sums are in fp32 and always in the same order: an answer does not depend on timing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

#: Inputs of one program of the first product, and of one of its rounds.
_SPLIT = 512
_ROUND = 64
#: Outputs of one program of the second.
_OUTPUTS = 128


@triton.jit  # type: ignore[untyped-decorator]
def _shrink(  # type: ignore[no-untyped-def]
    x, down, positions, hidden, width, columns, rows,
    split: tl.constexpr, round_: tl.constexpr, padded_columns: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    part = tl.program_id(1)
    position = tl.load(positions + row).to(tl.int64)
    if position < 0:
        return
    column = tl.arange(0, padded_columns)
    total = tl.zeros((padded_columns,), dtype=tl.float32)
    for start in range(0, split, round_):
        i = part * split + start + tl.arange(0, round_)
        inputs = tl.load(x + row * width + i, mask=i < width, other=0.0).to(tl.float32)
        weights = tl.load(
            down + (position * width + i[:, None]) * columns + column[None, :],
            mask=(i[:, None] < width) & (column[None, :] < columns),
            other=0.0,
        ).to(tl.float32)
        total += tl.sum(inputs[:, None] * weights, axis=0)
    tl.store(hidden + (part * rows + row) * columns + column, total, mask=column < columns)


@triton.jit  # type: ignore[untyped-decorator]
def _expand(  # type: ignore[no-untyped-def]
    output, hidden, up, positions, out, rank, parts, part_stride, row_stride,
    outputs: tl.constexpr, padded_rank: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    position = tl.load(positions + row).to(tl.int64)
    if position < 0:
        return
    r = tl.arange(0, padded_rank)
    n = tl.program_id(1) * outputs + tl.arange(0, outputs)
    sums = tl.zeros((padded_rank,), dtype=tl.float32)
    for part in range(parts):
        sums += tl.load(hidden + part * part_stride + row * row_stride + r, mask=r < rank, other=0.0)
    weights = tl.load(
        up + (position * rank + r[:, None]) * out + n[None, :],
        mask=(r[:, None] < rank) & (n[None, :] < out),
        other=0.0,
    ).to(tl.float32)
    before = tl.load(output + row * out + n, mask=n < out, other=0.0).to(tl.float32)
    after = before + tl.sum(sums[:, None] * weights, axis=0)
    tl.store(output + row * out + n, after.to(output.dtype.element_ty), mask=n < out)


class TritonProducts:
    def shrink(self, x: torch.Tensor, down: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        rows, width = x.shape
        columns = down.shape[2]
        parts = triton.cdiv(width, _SPLIT)
        hidden = torch.empty(parts, rows, columns, dtype=torch.float32, device=x.device)
        padded = triton.next_power_of_2(columns)
        _shrink[rows, parts](x, down, positions, hidden, width, columns, rows, _SPLIT, _ROUND, padded)
        return hidden

    def expand_add(self, output: torch.Tensor, hidden: torch.Tensor, up: torch.Tensor, positions: torch.Tensor) -> None:
        rows, out = output.shape
        rank = up.shape[1]
        grid = (rows, triton.cdiv(out, _OUTPUTS))
        _expand[grid](
            output, hidden, up, positions, out, rank, len(hidden), hidden.stride(0), hidden.stride(1),
            _OUTPUTS, triton.next_power_of_2(rank),
        )  # fmt: skip
