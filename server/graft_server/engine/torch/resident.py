"""An adapter in device memory: its primitive operations as tensors ready to be packed with others'."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as functional

from graft_plugins.method import Activation, BlockGraft, Graft, LinearGraft

SMALLEST_BUCKET = 8


def rank_bucket(rank: int) -> int:
    """Ranks are padded to the next power of two, and only adapters of one bucket share a product, so that a large
    rank never makes a small one pay."""
    return max(SMALLEST_BUCKET, 1 << (rank - 1).bit_length())


@dataclass(frozen=True, slots=True)
class ResidentLinear:
    """``down``: ``[in, R]``; ``up``: ``[R, out]`` with the scaling folded in; ``scale``: ``[out]`` or ``None``."""

    down: torch.Tensor
    up: torch.Tensor
    scale: torch.Tensor | None

    def to(self, device: torch.device) -> ResidentLinear:
        scale = None if self.scale is None else self.scale.to(device)
        return ResidentLinear(self.down.to(device), self.up.to(device), scale)


@dataclass(frozen=True, slots=True)
class ResidentBottleneck:
    """``down``: ``[hidden, R]``; ``down_bias``: ``[R]``; ``up``: ``[R, out]``; ``up_bias``: ``[out]``."""

    down: torch.Tensor
    down_bias: torch.Tensor
    up: torch.Tensor
    up_bias: torch.Tensor
    activation: Activation

    def to(self, device: torch.device) -> ResidentBottleneck:
        down, down_bias, up, up_bias = (part.to(device) for part in (self.down, self.down_bias, self.up, self.up_bias))
        return ResidentBottleneck(down, down_bias, up, up_bias, self.activation)


@dataclass(frozen=True, slots=True)
class ResidentAdapter:
    """``linears`` by module name, ``blocks`` by layer index, ``head`` on the logits. ``R`` is ``bucket`` throughout."""

    bucket: int
    linears: dict[str, ResidentLinear] = field(default_factory=dict)
    blocks: dict[int, ResidentBottleneck] = field(default_factory=dict)
    head: ResidentBottleneck | None = None

    def to(self, device: torch.device) -> ResidentAdapter:
        """A copy on ``device``; the same tensors where they are there already."""
        return ResidentAdapter(
            bucket=self.bucket,
            linears={name: linear.to(device) for name, linear in self.linears.items()},
            blocks={layer: neck.to(device) for layer, neck in self.blocks.items()},
            head=None if self.head is None else self.head.to(device),
        )

    @property
    def bytes(self) -> int:
        """Memory of all tensors."""
        total = 0
        for linear in self.linears.values():
            parts = (linear.down, linear.up, linear.scale)
            total += sum(t.numel() * t.element_size() for t in parts if t is not None)
        for neck in (*self.blocks.values(), *((self.head,) if self.head else ())):
            tensors = (neck.down, neck.down_bias, neck.up, neck.up_bias)
            total += sum(t.numel() * t.element_size() for t in tensors)
        return total


def make_resident(grafts: Iterable[Graft], *, dtype: torch.dtype) -> Generator[None, None, ResidentAdapter]:
    """Pad, transpose and cast an adapter's operations once, in host memory, so that a step only multiplies.

    It yields after each operation that it takes and each that it has converted: the caller may do something else then.
    """
    taken: list[Graft] = []
    for graft in grafts:
        taken.append(graft)
        yield
    bucket = rank_bucket(max((_rank(graft) for graft in taken), default=1))

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype).contiguous()

    def padded(matrix: torch.Tensor) -> torch.Tensor:
        """``[rank, n]`` to ``[bucket, n]``; zero rows change no product."""
        return functional.pad(matrix.float(), (0, 0, 0, bucket - matrix.shape[0]))

    linears: dict[str, ResidentLinear] = {}
    blocks: dict[int, ResidentBottleneck] = {}
    head: ResidentBottleneck | None = None
    for graft in taken:
        yield
        if isinstance(graft, LinearGraft):
            linears[graft.module] = ResidentLinear(
                down=cast(padded(graft.a).T),
                up=cast(padded(graft.b.T) * graft.scaling),
                scale=None if graft.output_scale is None else cast(graft.output_scale),
            )
            continue
        neck = ResidentBottleneck(
            down=cast(padded(graft.down).T),
            down_bias=cast(functional.pad(graft.down_bias.float(), (0, bucket - len(graft.down_bias)))),
            up=cast(padded(graft.up.T)),
            up_bias=cast(graft.up_bias),
            activation=graft.activation,
        )
        if isinstance(graft, BlockGraft):
            blocks[graft.layer] = neck
        else:
            head = neck
    return ResidentAdapter(bucket=bucket, linears=linears, blocks=blocks, head=head)


def _rank(graft: Graft) -> int:
    matrix = graft.a if isinstance(graft, LinearGraft) else graft.down
    return int(matrix.shape[0])
