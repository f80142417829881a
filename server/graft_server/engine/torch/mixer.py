"""Mixed-adapter layers: rows of different adapters in one forward pass, in one or two batched products a layer.

Hooks on the base model's modules add each row's own adapter to what the base computed (Punica: Chen et al. 2023;
S-LoRA: Sheng et al. 2023). Base rows are in no group and cost nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from graft_server.engine.integrity import require
from graft_server.engine.native.lora import native_lora
from graft_server.engine.torch.joint import Kind, join_linears, kind_of
from graft_server.engine.torch.native_rows import MOST_ROWS, NativeRows
from graft_server.engine.torch.resident import ResidentAdapter
from graft_server.engine.torch.rows import MixedRows, Placed, Run, group_rows
from graft_server.engine.torch.sequence import BASE
from graft_server.engine.torch.stack import HEAD, NeckSite, Stack, Unit

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], Any], Any]


class Mixer:
    """Adapters in device memory, and the hooks that apply them to the rows of the current step.

    A step calls ``use``, lays its rows out in the order of ``order``, and calls ``begin``; the hooks read what it said
    during the forward pass that follows. The model must run on packed rows, ``[1, T, width]``.
    """

    def __init__(self, model: nn.Module, *, blocks: Sequence[nn.Module], head: nn.Module) -> None:
        self.adapters: dict[int, ResidentAdapter] = {}
        self._stacks: dict[int, Stack] = {}
        self._rows: Sequence[MixedRows] = ()
        self._logit_rows: Sequence[MixedRows] = ()
        #: Computes rows that decode, on CPUs where it could be compiled.
        self.native = native_lora() if next(model.parameters()).device.type == "cpu" else None
        self._linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        self._head = head
        self._units: dict[str, Unit] = {}
        self._hooks: dict[Unit, RemovableHandle] = {}
        for name, module in self._linears.items():
            self._hook(Unit((name,), (0, module.out_features)), module)
        for index, block in enumerate(blocks):
            block.register_forward_hook(self._block_hook(index))
        head.register_forward_hook(self._head_hook())

    def add(self, engine_id: int, adapter: ResidentAdapter) -> None:
        """Make an adapter usable in the next step."""
        self.adapters[engine_id] = adapter

    def remove(self, engine_id: int) -> None:
        """Forget an adapter; no row of a later step may name it."""
        adapter = self.adapters.pop(engine_id, None)
        if adapter is not None and adapter.bucket in self._stacks:
            self._stacks[adapter.bucket].remove(engine_id)

    def use(self, engine_ids: Iterable[int]) -> None:
        """Have the adapters of the next step side by side."""
        buckets: dict[int, dict[int, ResidentAdapter]] = {}
        for engine_id in engine_ids:
            if engine_id != BASE:
                adapter = self.adapters[engine_id]
                buckets.setdefault(adapter.bucket, {})[engine_id] = adapter
        for bucket, adapters in buckets.items():
            if bucket not in self._stacks:
                self._stacks[bucket] = Stack(bucket, self._units)
            self._stacks[bucket].ensure(adapters)

    def order(self, engine_id: int) -> tuple[int, int]:
        """Sort key of an adapter's rows: the base first, then stack by stack in the order of positions."""
        if engine_id == BASE:
            return (0, 0)
        bucket = self.adapters[engine_id].bucket
        return (bucket, self._stacks[bucket].positions[engine_id])

    def begin(self, runs: Sequence[Run], logit_runs: Sequence[Run], device: torch.device) -> None:
        """State the rows of the next forward pass, in the order of ``order``."""
        rows = self._groups(runs, device)
        # Where all sequences decode, each row's logits are wanted.
        self.begin_rows(rows, rows if logit_runs == runs else self._groups(logit_runs, device))

    def begin_rows(self, rows: Sequence[MixedRows], logit_rows: Sequence[MixedRows]) -> None:
        """As ``begin``, of rows that the caller has laid out."""
        self._rows, self._logit_rows = rows, logit_rows

    def positions(self, engine_ids: Sequence[int]) -> dict[int, list[int]] | None:
        """For each bucket in use, the position of each row's adapter in its stack, -1 for rows of the base or of other
        stacks. ``None`` where an adapter has a bottleneck: its products depend on more than a position."""
        positions: dict[int, list[int]] = {}
        for row, engine_id in enumerate(engine_ids):
            if engine_id == BASE:
                continue
            adapter = self.adapters[engine_id]
            if adapter.blocks or adapter.head is not None:
                return None
            bucket, position = self.order(engine_id)
            if bucket not in positions:
                positions[bucket] = [-1] * len(engine_ids)
            positions[bucket][row] = position
        return positions

    def version(self, bucket: int) -> int:
        """A number that changes whenever what a bucket's hooks do changes, other than by the values of its weights."""
        return self._stacks[bucket].version

    def capacity(self, bucket: int) -> int:
        """How many positions a bucket's stack has."""
        return self._stacks[bucket].capacity

    def _groups(self, runs: Sequence[Run], device: torch.device) -> list[MixedRows]:
        buckets: dict[int, list[Placed]] = {}
        for engine_id, start, end in runs:
            if engine_id != BASE:
                bucket, position = self.order(engine_id)
                buckets.setdefault(bucket, []).append(Placed(position, start, end))
        groups: list[MixedRows] = []
        for bucket, placed in buckets.items():
            few = [run for run in placed if run.count <= MOST_ROWS]
            if self.native is not None and few:
                groups.append(NativeRows(self.native, bucket, few, runs[-1][2]))
                placed = [run for run in placed if run.count > MOST_ROWS]
            groups += group_rows(bucket, placed, device)
        return groups

    def check_integrity(self) -> None:
        """
        Raises:
            IntegrityError: a stack holds an adapter that is gone, or is at odds with itself.
        """
        for stack in self._stacks.values():
            stack.check_integrity()
            gone = [engine_id for engine_id in stack.held if engine_id not in self.adapters]
            require(not gone, f"adapters {gone} have been removed and are still in a stack")

    def join_linears(self, run: Callable[[], object]) -> list[nn.Module]:
        """Have linear modules that read the same tensor (q, k, v; gate, up) computed as one; before there are adapters.
        Which these are shows ``run``, a forward pass. Returns the modules that compute the products now, in the model's
        order."""
        computing: dict[str, nn.Module] = dict(self._linears)
        for names in self._readers(run):
            modules = [self._linears[name] for name in names]
            joint = join_linears(modules)
            for name in names:
                self._hooks.pop(self._units[name]).remove()
            sizes = [module.out_features for module in modules]
            self._hook(Unit(names, tuple(accumulate(sizes, initial=0))), joint)
            computing[names[0]] = joint
            for name in names[1:]:
                del computing[name]
        return list(computing.values())

    def _readers(self, run: Callable[[], object]) -> list[tuple[str, ...]]:
        """Linear modules that read one tensor and can be one, in the order of their calls; the output layer, which has
        rows of its own, and those that are called twice are left out."""
        readers: dict[int, list[str]] = {}
        alive: list[torch.Tensor] = []  # an id is only unique among living tensors

        def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
            def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                alive.append(inputs[0])
                readers.setdefault(id(inputs[0]), []).append(name)

            return hook

        handles = [module.register_forward_pre_hook(watch(name)) for name, module in self._linears.items()]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        calls = Counter(name for names in readers.values() for name in names)
        alike: dict[tuple[int, Kind], list[str]] = {}
        for tensor, names in readers.items():
            for name in names:
                kind = kind_of(self._linears[name])
                if kind is not None and calls[name] == 1 and self._linears[name] is not self._head:
                    alike.setdefault((tensor, kind), []).append(name)
        return [tuple(names) for names in alike.values() if len(names) > 1]

    def _hook(self, unit: Unit, module: nn.Linear) -> None:
        """Add what adapters make of a unit's input to its output."""
        self._units.update(dict.fromkeys(unit.names, unit))
        hook = self._linear_hook(unit, module.bias, on_logits=module is self._head)
        self._hooks[unit] = module.register_forward_hook(hook)

    # Hooks

    def _linear_hook(self, unit: Unit, bias: torch.Tensor | None, *, on_logits: bool) -> Hook:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            for rows in self._logit_rows if on_logits else self._rows:
                site = self._stacks[rows.bucket].linear(unit)
                if site is not None:
                    # Some modules have [T, width] instead of [1, T, width].
                    x = inputs[0].reshape(-1, inputs[0].shape[-1])
                    rows.add_linear(output.view(-1, output.shape[-1]), x, site, bias)

        return hook

    def _block_hook(self, index: int) -> Hook:
        def hook(_: nn.Module, __: tuple[torch.Tensor, ...], output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            self._add_necks(index, self._rows, hidden[0], hidden[0])

        return hook

    def _head_hook(self) -> Hook:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self._add_necks(HEAD, self._logit_rows, inputs[0][0], output[0])

        return hook

    def _add_necks(self, site: NeckSite, groups: Sequence[MixedRows], x: torch.Tensor, output: torch.Tensor) -> None:
        for rows in groups:
            neck = self._stacks[rows.bucket].neck(site)
            if neck is not None:
                rows.add_neck(output, x, neck)
