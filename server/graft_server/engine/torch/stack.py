"""The adapters in use side by side, as batched products need them: one stack a rank bucket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch

from graft_plugins.method import Activation
from graft_server.activations import ACTIVATIONS
from graft_server.engine.integrity import require
from graft_server.engine.native.lora import NativeLayer
from graft_server.engine.torch.positions import Positions
from graft_server.engine.torch.resident import ResidentAdapter, ResidentBottleneck, ResidentLinear

#: A block's layer index, or the output head.
NeckSite = int | str
HEAD: NeckSite = "head"
#: Modules that read the same input.
Siblings = tuple[str, ...]

_LEAST_CAPACITY = 4
_NECK_PARTS = ("down", "down_bias", "up", "up_bias")


@dataclass(slots=True)
class UpSite:
    """``weight``: ``[capacity, R, out]``; ``scale``: ``[capacity, 1, out]`` once an adapter has one."""

    weight: torch.Tensor
    scale: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class LinearSite:
    """What the adapters of a stack do at one linear module.

    ``down``: ``[capacity, in, siblings * R]``, for all modules that read the same input, of which the module's own
    ``columns``; ``up``: ``[capacity, R, out]``; ``scale``: ``[capacity, 1, out]`` once an adapter has one. ``native``
    is the same for ``NativeLora``.
    """

    down: torch.Tensor
    columns: slice
    up: torch.Tensor
    scale: torch.Tensor | None
    native: NativeLayer


@dataclass(slots=True)
class NeckWeights:
    """``down``: ``[capacity, in, R]``, ``down_bias``: ``[capacity, 1, R]``, ``up``: ``[capacity, R, out]``,
    ``up_bias``: ``[capacity, 1, out]``, and the activation of each position."""

    down: torch.Tensor
    down_bias: torch.Tensor
    up: torch.Tensor
    up_bias: torch.Tensor
    activations: list[Activation]

    def write(self, at: int, neck: ResidentBottleneck | None) -> None:
        """Have a bottleneck, or one that adds nothing, at a position."""
        for part in _NECK_PARTS:
            getattr(self, part)[at] = 0 if neck is None else getattr(neck, part)
        if neck is not None:
            self.activations[at] = neck.activation

    def apply(self, x: torch.Tensor, places: slice) -> torch.Tensor:
        """What the adapters at ``places`` add: ``[P, n, in]`` to ``[P, n, out]``."""
        hidden = torch.baddbmm(self.down_bias[places], x, self.down[places])
        kinds = self.activations[places]
        if len(set(kinds)) == 1:
            hidden = ACTIVATIONS[kinds[0]](hidden)
        else:
            for kind in set(kinds):
                own = [i for i, other in enumerate(kinds) if other == kind]
                hidden[own] = ACTIVATIONS[kind](hidden[own])
        return torch.baddbmm(self.up_bias[places], hidden, self.up[places])


class Stack:
    """Adapters of one rank bucket ``R`` at the positions of a few large tensors.

    ``siblings`` names, for each linear module, the modules that read the same input, itself among them: their first
    products are one. A position without an adapter holds anything finite; no row of a batch takes its product.
    """

    def __init__(self, bucket: int, siblings: Mapping[str, Siblings]) -> None:
        self.bucket = bucket
        self.positions = Positions()
        self._siblings = siblings
        #: Positions that there is room for.
        self.capacity = 0
        self._downs: dict[Siblings, torch.Tensor] = {}
        self._ups: dict[str, UpSite] = {}
        self._necks: dict[NeckSite, NeckWeights] = {}
        #: How many of the adapters here use a module, or have a bottleneck at a site.
        self._users: Counter[str | NeckSite] = Counter()
        self._held: dict[int, ResidentAdapter] = {}
        self._sites: dict[str, LinearSite] = {}
        #: Changes when a tensor moves or a module gets its first adapter: what was recorded of a step holds no longer.
        self.version = 0

    def ensure(self, adapters: Mapping[int, ResidentAdapter]) -> None:
        """Have these adapters at positions. Others stay while there is room."""
        writes = self.positions.assign(adapters)
        if not writes:
            return
        self._reserve(len(self.positions))
        for write in writes:
            self._write(write.position, adapters[write.engine_id])
            if write.engine_id not in self._held:
                self._held[write.engine_id] = adapters[write.engine_id]
                sites = _sites(adapters[write.engine_id])
                self.version += any(self._users[site] == 0 for site in sites)
                self._users.update(sites)
        for engine_id in [engine_id for engine_id in self._held if engine_id not in self.positions]:
            self._drop(engine_id)

    def remove(self, engine_id: int) -> None:
        """Forget an adapter; unknown ids are ignored."""
        self.positions.remove(engine_id)
        if engine_id in self._held:
            self._drop(engine_id)

    @property
    def held(self) -> Collection[int]:
        """Engine ids of the adapters at positions."""
        return self._held.keys()

    def check_integrity(self) -> None:
        """
        Raises:
            IntegrityError: positions, adapters and the number of their users don't agree.
        """
        placed = {engine_id for engine_id in self.positions.ids if engine_id is not None}
        odd = placed ^ self._held.keys()
        require(not odd, f"adapters {odd} are either at a position or held, not both")
        users = Counter(site for adapter in self._held.values() for site in _sites(adapter))
        require(users == +self._users, f"sites of stack {self.bucket} are counted as {dict(self._users)}")

    def _drop(self, engine_id: int) -> None:
        self._users.subtract(_sites(self._held.pop(engine_id)))

    def linear(self, name: str) -> LinearSite | None:
        """``None`` where no adapter here changes the module."""
        if self._users[name] == 0:
            return None
        site = self._sites.get(name)
        if site is None:
            down, up, columns = self._downs[self._siblings[name]], self._ups[name], self._columns(name)
            native = NativeLayer(down[:, :, columns], up.weight, [0, up.weight.shape[2]])
            site = self._sites[name] = LinearSite(down, columns, up.weight, up.scale, native)
        return site

    def _columns(self, name: str) -> slice:
        """The module's own part of the first products."""
        first = self._siblings[name].index(name) * self.bucket
        return slice(first, first + self.bucket)

    def _moved(self) -> None:
        """Tensors have been replaced or added."""
        self.version += 1
        self._sites.clear()

    def neck(self, site: NeckSite) -> NeckWeights | None:
        """``None`` where no adapter here has a bottleneck there."""
        return self._necks[site] if self._users[site] > 0 else None

    def _reserve(self, count: int) -> None:
        if count <= self.capacity:
            return
        self._moved()
        before, self.capacity = self.capacity, max(_LEAST_CAPACITY, 2 * self.capacity, count)
        for siblings, weight in self._downs.items():
            self._downs[siblings] = self._enlarged(weight, before)
        for up in self._ups.values():
            up.weight = self._enlarged(up.weight, before)
            up.scale = None if up.scale is None else self._enlarged(up.scale, before)
        for neck in self._necks.values():
            for part in _NECK_PARTS:
                setattr(neck, part, self._enlarged(getattr(neck, part), before))
            neck.activations += neck.activations[:1] * (self.capacity - before)

    def _enlarged(self, tensor: torch.Tensor, before: int) -> torch.Tensor:
        larger = tensor.new_zeros(self.capacity, *tensor.shape[1:])
        larger[:before] = tensor
        return larger

    def _write(self, at: int, adapter: ResidentAdapter) -> None:
        necks = dict(_necks(adapter))
        for name, linear in adapter.linears.items():
            self._make_linear(name, linear)
        for site, neck in necks.items():
            self._make_neck(site, neck)
        for siblings, weight in self._downs.items():
            for name in siblings:
                own = adapter.linears.get(name)
                part = weight[at, :, self._columns(name)]
                part.zero_() if own is None else part.copy_(own.down)
        for name, up in self._ups.items():
            _write_up(up, at, adapter.linears.get(name))
        for site, weights in self._necks.items():
            weights.write(at, necks.get(site))

    def _make_linear(self, name: str, linear: ResidentLinear) -> None:
        siblings = self._siblings[name]
        if siblings not in self._downs:
            shape = (self.capacity, linear.down.shape[0], len(siblings) * self.bucket)
            self._downs[siblings] = linear.down.new_zeros(shape)
        if name not in self._ups:
            self._ups[name] = UpSite(linear.up.new_zeros(self.capacity, *linear.up.shape))
        if linear.scale is not None and self._ups[name].scale is None:
            self._moved()
            self._ups[name].scale = linear.scale.new_ones(self.capacity, 1, len(linear.scale))

    def _make_neck(self, site: NeckSite, neck: ResidentBottleneck) -> None:
        if site not in self._necks:
            self._necks[site] = NeckWeights(
                down=neck.down.new_zeros(self.capacity, *neck.down.shape),
                down_bias=neck.down_bias.new_zeros(self.capacity, 1, len(neck.down_bias)),
                up=neck.up.new_zeros(self.capacity, *neck.up.shape),
                up_bias=neck.up_bias.new_zeros(self.capacity, 1, len(neck.up_bias)),
                activations=[neck.activation] * self.capacity,
            )


def _write_up(up: UpSite, at: int, linear: ResidentLinear | None) -> None:
    """Have a linear's second product, or one that adds nothing, at a position."""
    up.weight[at] = 0 if linear is None else linear.up
    if up.scale is not None:
        up.scale[at] = 1 if linear is None or linear.scale is None else linear.scale


def _necks(adapter: ResidentAdapter) -> Iterator[tuple[NeckSite, ResidentBottleneck]]:
    yield from adapter.blocks.items()
    if adapter.head is not None:
        yield HEAD, adapter.head


def _sites(adapter: ResidentAdapter) -> list[str | NeckSite]:
    return [*adapter.linears, *(site for site, _ in _necks(adapter))]
