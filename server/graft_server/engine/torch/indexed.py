"""Rows that know their adapter's position: products of a shape that no mixture changes, as CUDA graphs need them.

Where rows are grouped by adapter, the groups are Python's numbers and differ from step to step. Here they are a tensor,
so that the same recorded kernels serve any mixture (BGMV in Punica: Chen et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

from graft_server.engine.torch.rows import FirstProducts
from graft_server.engine.torch.stack import LinearSite, NeckWeights


class Products(Protocol):
    """The two products of rows with a position each. Rows at -1 have none.

    ``x``: ``[T, in]``; ``down``: ``[capacity, in, columns]``; ``positions``: ``[T]`` (int32); ``hidden``: ``[splits, T,
    columns]``, parts whose sum is the first product; ``up``: ``[capacity, R, out]``; ``output``: ``[T, out]``.
    """

    def shrink(self, x: torch.Tensor, down: torch.Tensor, positions: torch.Tensor) -> torch.Tensor: ...

    def expand_add(
        self, output: torch.Tensor, hidden: torch.Tensor, up: torch.Tensor, positions: torch.Tensor
    ) -> None: ...


class GatheredProducts:
    """With torch alone: each row's weights are copied together first. Exact and slow; the reference."""

    def shrink(self, x: torch.Tensor, down: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return torch.bmm(x[:, None], down[positions.clamp(min=0)]).transpose(0, 1)

    def expand_add(self, output: torch.Tensor, hidden: torch.Tensor, up: torch.Tensor, positions: torch.Tensor) -> None:
        update = torch.bmm(hidden.sum(0)[:, None], up[positions.clamp(min=0)])[:, 0]
        output += torch.where(positions[:, None] >= 0, update, 0)


@dataclass(frozen=True, slots=True)
class IndexedRows:
    """All ``T`` rows of a step, of which those of one stack have a position in it (``positions``: ``[T]``, int32, -1
    elsewhere). Their adapters have no bottlenecks."""

    bucket: int
    positions: torch.Tensor
    products: Products
    first: FirstProducts = field(default_factory=FirstProducts, compare=False)

    def add_linear(self, output: torch.Tensor, x: torch.Tensor, site: LinearSite, bias: torch.Tensor | None) -> None:
        hidden = self.first.of(x, lambda: self.products.shrink(x, site.down, self.positions))
        self.products.expand_add(output, hidden[:, :, site.columns], site.up, self.positions)
        if site.scale is None:
            return
        scale = site.scale[self.positions.clamp(min=0), 0]
        scale = torch.where(self.positions[:, None] >= 0, scale, 1)
        if bias is None:
            output *= scale
        else:
            output.copy_((output - bias) * scale + bias)

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

    x, down, up, output = tensor(5, 600), tensor(3, 600, 48), tensor(3, 16, 200), tensor(5, 200)
    positions = torch.tensor([2, -1, 0, 2, 1], dtype=torch.int32, device=device)

    def result(products: Products) -> torch.Tensor:
        result = output.clone()
        products.expand_add(result, products.shrink(x, down, positions)[:, :, 16:32], up, positions)
        return result

    require_close(result(products), result(GatheredProducts()), tolerance)
