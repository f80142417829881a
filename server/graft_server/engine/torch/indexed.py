"""Rows that know their adapter's position: products of a shape that no mixture changes, as CUDA graphs need them.

Where rows are grouped by adapter, the groups are Python's numbers and differ from step to step. Here they are tensors,
so that the same recorded kernels serve any mixture (BGMV and SGMV in Punica: Chen et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from graft_server.engine.torch.stack import LinearSite, NeckWeights, Part

#: Rows of one tile at most: what one product of a GPU's matrix units takes.
TILE_ROWS = 16


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Where each of ``T`` rows has its adapter.

    ``positions``: ``[T]`` (int32), in a stack; -1 for rows that have none there. ``tiles``: ``[M, 3]`` (int32), the
    same as pieces of neighbouring rows: position, first row, number of rows (none in unused tiles).
    """

    positions: torch.Tensor
    tiles: torch.Tensor


def tile_rows(positions: Sequence[int]) -> list[tuple[int, int, int]]:
    """Neighbouring rows of one position in tiles of at most ``TILE_ROWS``: position, first row, number of rows."""
    tiles: list[tuple[int, int, int]] = []
    for row, position in enumerate(positions):
        if position < 0:
            continue
        if tiles:
            last, first, count = tiles[-1]
            if last == position and first + count == row and count < TILE_ROWS:
                tiles[-1] = (position, first, count + 1)
                continue
        tiles.append((position, row, 1))
    return tiles


def most_tiles(rows: int, capacity: int) -> int:
    """Tiles of so many rows at most, where the rows of each of ``capacity`` positions lie together."""
    return min(rows, capacity + rows // TILE_ROWS)


class Products(Protocol):
    """The two products of rows with a position each. Rows at -1 have none.

    ``x``: ``[T, in]``; ``down``: ``[capacity, in, modules * R]``; ``hidden``: ``[splits, T, modules * R]``, parts whose
    sum is the first product; ``up``: ``[capacity, R, out]``; ``output``: ``[T, out]``; ``parts`` say which columns of
    the first product make which outputs.
    """

    def shrink(self, x: torch.Tensor, down: torch.Tensor, index: RowIndex) -> torch.Tensor: ...

    def expand_add(
        self, output: torch.Tensor, hidden: torch.Tensor, up: torch.Tensor, parts: tuple[Part, ...], index: RowIndex
    ) -> None: ...


class GatheredProducts:
    """With torch alone: each row's weights are copied together first. Exact and slow; the reference."""

    def shrink(self, x: torch.Tensor, down: torch.Tensor, index: RowIndex) -> torch.Tensor:
        return torch.bmm(x[:, None], down[index.positions.clamp(min=0)]).transpose(0, 1)

    def expand_add(
        self, output: torch.Tensor, hidden: torch.Tensor, up: torch.Tensor, parts: tuple[Part, ...], index: RowIndex
    ) -> None:
        first, second = hidden.sum(0)[:, None], up[index.positions.clamp(min=0)]
        for part in parts:
            columns, outputs = slice(part.column, part.column + up.shape[1]), slice(part.begin, part.end)
            update = torch.bmm(first[:, :, columns], second[:, :, outputs])[:, 0]
            output[:, outputs] += torch.where(index.positions[:, None] >= 0, update, 0)


@dataclass(frozen=True, slots=True)
class IndexedRows:
    """All ``T`` rows of a step, of which those of one stack have a position in it. Their adapters have no
    bottlenecks."""

    bucket: int
    index: RowIndex
    products: Products

    def add_linear(self, output: torch.Tensor, x: torch.Tensor, site: LinearSite, bias: torch.Tensor | None) -> None:
        hidden = self.products.shrink(x, site.weights.down, self.index)
        self.products.expand_add(output, hidden, site.weights.up, site.parts, self.index)
        positions = self.index.positions
        for part in site.scaled:
            assert site.weights.excess is not None
            outputs = slice(part.begin, part.end)
            own, excess = output[:, outputs], site.weights.excess[positions.clamp(min=0), 0, outputs]
            without = own if bias is None else own - bias[outputs]
            own += torch.where(positions[:, None] >= 0, without * excess, 0)

    def add_neck(self, output: torch.Tensor, x: torch.Tensor, neck: NeckWeights) -> None:
        """None of these rows has one; others in the stack may."""


def require_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """
    Raises:
        ArithmeticError: they differ by more than ``tolerance`` times the largest expected value.
    """
    difference = float((got.float() - expected.float()).abs().max() / expected.float().abs().max())
    if not difference < tolerance:
        raise ArithmeticError(f"results differ by {difference:.3g} of the largest")


def check_products(products: Products, dtype: torch.dtype, device: torch.device, tolerance: float) -> None:
    """Compare with ``GatheredProducts`` on shapes that are not powers of two.

    Raises:
        ArithmeticError: they differ.
    """
    random = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(device, dtype)

    rows = [2, 2, -1, 0, *[1] * (TILE_ROWS + 2), 3]
    x, down, up, output = tensor(len(rows), 600), tensor(4, 600, 64), tensor(4, 16, 700), tensor(len(rows), 700)
    # The module in between has no adapter.
    parts = (Part(0, 0, 300), Part(16, 300, 364), Part(48, 440, 700))
    tiles = [*tile_rows(rows), (0, 0, 0)]
    index = RowIndex(
        torch.tensor(rows, dtype=torch.int32, device=device), torch.tensor(tiles, dtype=torch.int32, device=device)
    )

    def result(products: Products) -> torch.Tensor:
        result = output.clone()
        products.expand_add(result, products.shrink(x, down, index), up, parts, index)
        return result

    require_close(result(products), result(GatheredProducts()), tolerance)
