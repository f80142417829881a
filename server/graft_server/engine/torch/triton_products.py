"""The products of ``indexed.py`` as two Triton kernels (shrink and expand of SGMV in Punica: Chen et al. 2023).

A program of the first multiplies a part of a tile's inputs by its adapter's weights; one of the second takes the sum of
the parts to some of the outputs. Weights are read once a tile, not once a row. Sums are in fp32 and always in the same
order: an answer does not depend on timing.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from graft_server.engine.torch.indexed import TILE_ROWS, RowIndex
from graft_server.engine.torch.stack import Part
from graft_server.engine.torch.triton_shapes import padded_side, product_precision

#: Parts of the first product at most: each is a program, and each program of the second reads them all.
_PARTS = 8
#: Inputs of one program of the first product at least, and of one of its rounds.
_LEAST_SPLIT = 256
_ROUND = 128
#: Outputs of one program of the second.
_OUTPUTS = 256
#: What begins and ends at multiples of so many numbers is read in the largest pieces there are.
_VECTOR = 16
#: Warps of a program of the first product, and of the second.
_SHRINK_WARPS = 4
_EXPAND_WARPS = 4


@triton.jit  # type: ignore[untyped-decorator]
def _shrink(  # type: ignore[no-untyped-def]
    x, down, tiles, hidden, width, columns, rows,
    split: tl.constexpr, round_: tl.constexpr, padded_columns: tl.constexpr, tile_rows: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    part = tl.program_id(1)
    count = tl.load(tiles + 3 * tile + 2)
    if count == 0:
        return
    position = tl.load(tiles + 3 * tile).to(tl.int64)
    first = tl.load(tiles + 3 * tile + 1)
    m = tl.arange(0, tile_rows)
    column = tl.arange(0, padded_columns)
    total = tl.zeros((tile_rows, padded_columns), dtype=tl.float32)
    for start in range(0, split, round_):
        i = part * split + start + tl.arange(0, round_)
        inputs = tl.load(
            x + (first + m)[:, None] * width + i[None, :], mask=(m < count)[:, None] & (i < width)[None, :], other=0.0
        )
        weights = tl.load(
            down + (position * width + i[:, None]) * columns + column[None, :],
            mask=(i[:, None] < width) & (column[None, :] < columns),
            other=0.0,
        )
        total = tl.dot(inputs, weights, total, input_precision=precision)
    place = (part * rows + first + m)[:, None] * columns + column[None, :]
    tl.store(hidden + place, total, mask=(m < count)[:, None] & (column < columns)[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _expand(  # type: ignore[no-untyped-def]
    output, hidden, up, tiles, pieces, out, rank, part_stride, row_stride,
    parts: tl.constexpr, outputs: tl.constexpr, padded_rank: tl.constexpr, tile_rows: tl.constexpr,
    columns_together: tl.constexpr, outputs_together: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    piece = tl.program_id(1)
    count = tl.load(tiles + 3 * tile + 2)
    if count == 0:
        return
    position = tl.load(tiles + 3 * tile).to(tl.int64)
    first = tl.load(tiles + 3 * tile + 1)
    column = tl.multiple_of(tl.load(pieces + 3 * piece), columns_together)
    begin = tl.multiple_of(tl.load(pieces + 3 * piece + 1), outputs_together)
    end = tl.multiple_of(tl.load(pieces + 3 * piece + 2), outputs_together)
    m = tl.arange(0, tile_rows)
    r = tl.arange(0, padded_rank)
    n = begin + tl.arange(0, outputs)
    weights = tl.load(
        up + (position * rank + r[:, None]) * out + n[None, :],
        mask=(r[:, None] < rank) & (n[None, :] < end),
        other=0.0,
    )
    places = output + (first + m)[:, None] * out + n[None, :]
    inside = (m < count)[:, None] & (n < end)[None, :]
    before = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros((tile_rows, padded_rank), dtype=tl.float32)
    known = (m < count)[:, None] & (r < rank)[None, :]
    for part in tl.static_range(parts):
        sums += tl.load(
            hidden + part * part_stride + (first + m)[:, None] * row_stride + column + r[None, :], mask=known, other=0.0
        )
    after = tl.dot(sums, weights.to(tl.float32), before, input_precision=precision)
    tl.store(places, after.to(output.dtype.element_ty), mask=inside)


class TritonProducts:
    def __init__(self) -> None:
        self._pieces: dict[tuple[tuple[Part, ...], torch.device], torch.Tensor] = {}

    def shrink(self, x: torch.Tensor, down: torch.Tensor, index: RowIndex) -> torch.Tensor:
        x = x.contiguous()
        rows, width = x.shape
        columns = down.shape[2]
        split = max(_LEAST_SPLIT, triton.next_power_of_2(triton.cdiv(width, _PARTS)))
        parts = triton.cdiv(width, split)
        hidden = torch.empty(parts, rows, columns, dtype=torch.float32, device=x.device)
        _shrink[len(index.tiles), parts](
            x, down, index.tiles, hidden, width, columns, rows,
            split, _ROUND, padded_side(columns), TILE_ROWS, product_precision(x), num_warps=_SHRINK_WARPS,
        )  # fmt: skip
        return hidden

    def expand_add(
        self, output: torch.Tensor, hidden: torch.Tensor, up: torch.Tensor, parts: tuple[Part, ...], index: RowIndex
    ) -> None:
        out, rank = up.shape[2], up.shape[1]
        pieces = self._pieces_of(parts, output.device)
        places = [place for part in parts for place in (part.begin, part.end)]
        _expand[len(index.tiles), len(pieces)](
            output, hidden, up, index.tiles, pieces, out, rank, hidden.stride(0), hidden.stride(1),
            len(hidden), _OUTPUTS, padded_side(rank), TILE_ROWS,
            math.gcd(_VECTOR, rank), math.gcd(_VECTOR, *places), product_precision(output), num_warps=_EXPAND_WARPS,
        )  # fmt: skip

    def _pieces_of(self, parts: tuple[Part, ...], device: torch.device) -> torch.Tensor:
        """What each program of the second product has: its first column of the first product, its first output, and the
        end of its module's outputs; ``[B, 3]`` (int32)."""
        key = (parts, device)
        if key not in self._pieces:
            pieces = [
                (part.column, begin, part.end) for part in parts for begin in range(part.begin, part.end, _OUTPUTS)
            ]
            self._pieces[key] = torch.tensor(pieces, dtype=torch.int32, device=device)
        return self._pieces[key]
