"""The weights of a group of adapters side by side, as one batched product needs them, kept while the group lasts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as functional

from graft_plugins.method import Activation
from graft_server.engine.torch.resident import ResidentAdapter, ResidentBottleneck
from graft_server.engine.torch.rows import Ids

PackT = TypeVar("PackT")

#: Packs of this many groups are kept; a running mixture needs one or two.
_KEPT = 8

ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda x: x,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class PackCache:
    """Packs by group of adapters and place in the model; the least recently used group goes first."""

    def __init__(self) -> None:
        self._packs: OrderedDict[Ids, dict[Hashable, Any]] = OrderedDict()

    def get(self, ids: Ids, site: Hashable, make: Callable[[], PackT]) -> PackT:
        packs = self._packs.get(ids)
        if packs is None:
            packs = self._packs[ids] = {}
            if len(self._packs) > _KEPT:
                self._packs.popitem(last=False)
        else:
            self._packs.move_to_end(ids)
        if site not in packs:
            packs[site] = make()
        pack: PackT = packs[site]
        return pack

    def forget(self, engine_id: int) -> None:
        """Drop every pack that holds an adapter."""
        for ids in [ids for ids in self._packs if engine_id in ids]:
            del self._packs[ids]


@dataclass(frozen=True, slots=True)
class DownPack:
    """The first products of modules that read the same input: ``weight`` ``[G, in, members * R]``, and the first column
    of each member that any adapter of the group changes."""

    weight: torch.Tensor
    columns: dict[str, int]
    bucket: int


@dataclass(frozen=True, slots=True)
class UpPack:
    """``weight``: ``[G, R, out]``; ``scale``: ``[G, 1, out]`` or ``None``."""

    weight: torch.Tensor
    scale: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class NeckPack:
    """``down`` ``[G, in, R]``, ``down_bias`` ``[G, 1, R]``, ``up`` ``[G, R, out]``, ``up_bias`` ``[G, 1, out]``, and
    which adapters of the group use each activation."""

    down: torch.Tensor
    down_bias: torch.Tensor
    up: torch.Tensor
    up_bias: torch.Tensor
    activations: list[tuple[Activation, list[int]]]

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """``[G, n, in]`` to ``[G, n, out]``."""
        hidden = torch.baddbmm(self.down_bias, rows, self.down)
        if len(self.activations) == 1:
            hidden = ACTIVATIONS[self.activations[0][0]](hidden)
        else:
            for activation, members in self.activations:
                hidden[members] = ACTIVATIONS[activation](hidden[members])
        return torch.baddbmm(self.up_bias, hidden, self.up)


def _stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A group of one needs no copy."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))


def pack_down(adapters: Sequence[ResidentAdapter], siblings: Sequence[str]) -> DownPack | None:
    """``None`` where no adapter of the group changes any of the modules."""
    members = [name for name in siblings if any(name in adapter.linears for adapter in adapters)]
    if not members:
        return None
    example = next(a.linears[name].down for a in adapters for name in members if name in a.linears)
    nothing = torch.zeros_like(example)
    weight = _stack(
        [
            torch.cat([a.linears[name].down if name in a.linears else nothing for name in members], dim=1)
            for a in adapters
        ]
    )
    bucket = adapters[0].bucket
    return DownPack(weight, {name: i * bucket for i, name in enumerate(members)}, bucket)


def pack_up(adapters: Sequence[ResidentAdapter], name: str) -> UpPack:
    """For a module that at least one adapter of the group changes."""
    linears = [adapter.linears.get(name) for adapter in adapters]
    example = next(linear.up for linear in linears if linear)
    nothing = torch.zeros_like(example)
    weight = _stack([linear.up if linear else nothing for linear in linears])
    scale = None
    if any(linear and linear.scale is not None for linear in linears):
        ones = example.new_ones(example.shape[1])
        scale = _stack([linear.scale if linear and linear.scale is not None else ones for linear in linears])[:, None]
    return UpPack(weight, scale)


def pack_necks(necks: Sequence[ResidentBottleneck | None]) -> NeckPack | None:
    """``None`` where no adapter of the group has a bottleneck there."""
    example = next((neck for neck in necks if neck), None)
    if example is None:
        return None

    def stack(part: str) -> torch.Tensor:
        nothing = torch.zeros_like(getattr(example, part))
        return _stack([getattr(neck, part) if neck else nothing for neck in necks])

    by_activation: dict[Activation, list[int]] = {}
    for i, neck in enumerate(necks):
        by_activation.setdefault((neck or example).activation, []).append(i)
    return NeckPack(
        down=stack("down"),
        down_bias=stack("down_bias")[:, None],
        up=stack("up"),
        up_bias=stack("up_bias")[:, None],
        activations=list(by_activation.items()),
    )
