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
#: What adapters do: at a linear module, with its scale, or at the site of a bottleneck.
Use = str | tuple[str, str] | NeckSite
SCALE = "scale"

_LEAST_CAPACITY = 4
_NECK_PARTS = ("down", "down_bias", "up", "up_bias")


@dataclass(frozen=True, slots=True)
class Unit:
    """Linear modules that are computed as one, by their names. ``ends``: where the outputs of each begin, and where
    those of the last one end."""

    names: tuple[str, ...]
    ends: tuple[int, ...]

    def part(self, name: str, rank: int) -> Part:
        at = self.names.index(name)
        return Part(at * rank, self.ends[at], self.ends[at + 1])


@dataclass(slots=True)
class LinearWeights:
    """``down``: ``[capacity, in, modules * R]``; ``up``: ``[capacity, R, out]``; ``excess``: ``[capacity, 1, out]``,
    by how much scales are more than one, once an adapter has one."""

    down: torch.Tensor
    up: torch.Tensor
    excess: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One module's part of a unit: its outputs are ``begin : end``, and its ``R`` columns of the first product begin at
    ``column``."""

    column: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class LinearSite:
    """What the adapters of a stack do at the linear modules of a unit: ``parts`` are those of modules that an adapter
    changes, ``scaled`` those of modules that one scales. ``native`` has the parts for ``NativeLora``, neighbours
    together: where their outputs are, and the weights."""

    weights: LinearWeights
    parts: tuple[Part, ...]
    scaled: tuple[Part, ...]
    native: list[tuple[slice, NativeLayer]]

    @classmethod
    def of(cls, weights: LinearWeights, parts: tuple[Part, ...], scaled: tuple[Part, ...] = ()) -> LinearSite:
        rank = weights.up.shape[1]
        together: list[list[Part]] = []
        for part in parts:
            if together and (together[-1][-1].column + rank, together[-1][-1].end) == (part.column, part.begin):
                together[-1].append(part)
            else:
                together.append([part])
        native: list[tuple[slice, NativeLayer]] = []
        for run in together:
            begin = run[0].begin
            outputs, columns = slice(begin, run[-1].end), slice(run[0].column, run[-1].column + rank)
            ends = [0, *(part.end - begin for part in run)]
            native.append((outputs, NativeLayer(weights.down[:, :, columns], weights.up[:, :, outputs], ends)))
        return cls(weights, parts, scaled, native)


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

    ``units`` has, for each linear module, the unit that it is of. A position without an adapter holds anything finite;
    no row of a batch takes its product.
    """

    def __init__(self, bucket: int, units: Mapping[str, Unit]) -> None:
        self.bucket = bucket
        self.positions = Positions()
        self._units = units
        #: Positions that there is room for.
        self.capacity = 0
        self._linears: dict[Unit, LinearWeights] = {}
        self._necks: dict[NeckSite, NeckWeights] = {}
        #: How many of the adapters here use a module, scale it, or have a bottleneck at a site.
        self._users: Counter[Use] = Counter()
        self._held: dict[int, ResidentAdapter] = {}
        self._sites: dict[Unit, LinearSite | None] = {}
        #: Changes when a tensor moves, or what a module's adapters do: what was recorded of a step holds no longer.
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
                self._users.update(uses := _uses(adapters[write.engine_id]))
                if any(self._users[use] == 1 for use in uses):
                    self._moved()
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
        users = Counter(use for adapter in self._held.values() for use in _uses(adapter))
        require(users == +self._users, f"uses of stack {self.bucket} are counted as {dict(self._users)}")

    def _drop(self, engine_id: int) -> None:
        self._users.subtract(uses := _uses(self._held.pop(engine_id)))
        if any(self._users[use] == 0 for use in uses):
            self._moved()

    def linear(self, unit: Unit) -> LinearSite | None:
        """``None`` where no adapter here changes any of its modules."""
        if unit not in self._sites:
            parts = {name: unit.part(name, self.bucket) for name in unit.names if self._users[name] > 0}
            scaled = tuple(part for name, part in parts.items() if self._users[(name, SCALE)] > 0)
            site = LinearSite.of(self._linears[unit], tuple(parts.values()), scaled) if parts else None
            self._sites[unit] = site
        return self._sites[unit]

    def _moved(self) -> None:
        """Tensors have been replaced or added, or a module has its first adapter or none any more."""
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
        for weights in self._linears.values():
            weights.down, weights.up = self._enlarged(weights.down, before), self._enlarged(weights.up, before)
            weights.excess = None if weights.excess is None else self._enlarged(weights.excess, before)
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
        for unit, weights in self._linears.items():
            for name in unit.names:
                _write_linear(weights, at, unit.part(name, self.bucket), adapter.linears.get(name))
        for site, neck_weights in self._necks.items():
            neck_weights.write(at, necks.get(site))

    def _make_linear(self, name: str, linear: ResidentLinear) -> None:
        unit = self._units[name]
        out = unit.ends[-1]
        if unit not in self._linears:
            down = linear.down.new_zeros(self.capacity, len(linear.down), len(unit.names) * self.bucket)
            self._linears[unit] = LinearWeights(down, linear.up.new_zeros(self.capacity, self.bucket, out))
        if linear.scale is not None and self._linears[unit].excess is None:
            self._linears[unit].excess = linear.scale.new_zeros(self.capacity, 1, out)

    def _make_neck(self, site: NeckSite, neck: ResidentBottleneck) -> None:
        if site not in self._necks:
            self._necks[site] = NeckWeights(
                down=neck.down.new_zeros(self.capacity, *neck.down.shape),
                down_bias=neck.down_bias.new_zeros(self.capacity, 1, len(neck.down_bias)),
                up=neck.up.new_zeros(self.capacity, *neck.up.shape),
                up_bias=neck.up_bias.new_zeros(self.capacity, 1, len(neck.up_bias)),
                activations=[neck.activation] * self.capacity,
            )


def _write_linear(weights: LinearWeights, at: int, part: Part, linear: ResidentLinear | None) -> None:
    """Have a module's own products, or such as add nothing, at a position."""
    columns, outputs = slice(part.column, part.column + weights.up.shape[1]), slice(part.begin, part.end)
    weights.down[at, :, columns] = 0 if linear is None else linear.down
    weights.up[at, :, outputs] = 0 if linear is None else linear.up
    if weights.excess is not None:
        weights.excess[at, :, outputs] = 0 if linear is None or linear.scale is None else linear.scale - 1


def _necks(adapter: ResidentAdapter) -> Iterator[tuple[NeckSite, ResidentBottleneck]]:
    yield from adapter.blocks.items()
    if adapter.head is not None:
        yield HEAD, adapter.head


def _uses(adapter: ResidentAdapter) -> list[Use]:
    scaled = [(name, SCALE) for name, linear in adapter.linears.items() if linear.scale is not None]
    return [*adapter.linears, *scaled, *(site for site, _ in _necks(adapter))]
