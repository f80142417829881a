"""Mixed-adapter layers: rows of different adapters in one forward pass, in one or two batched products a layer.

Hooks on the base model's modules add each row's own adapter to what the base computed (Punica: Chen et al. 2023;
S-LoRA: Sheng et al. 2023). Base rows are in no group and cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from graft_server.engine.torch.packs import NeckPack, PackCache, pack_down, pack_necks, pack_up
from graft_server.engine.torch.resident import ResidentAdapter, ResidentBottleneck
from graft_server.engine.torch.rows import Ids, RowGroup, Run, group_rows
from graft_server.engine.torch.sequence import BASE

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], Any], Any]


class Mixer:
    """Adapters in device memory, and the hooks that apply them to the rows of the current step.

    ``begin`` states which rows belong to whom; the hooks read it during the forward pass that follows. The model must
    run on packed rows, ``[1, T, width]``.
    """

    def __init__(self, model: nn.Module, *, blocks: Sequence[nn.Module], head: nn.Module) -> None:
        self.adapters: dict[int, ResidentAdapter] = {}
        self._packs = PackCache()
        self._rows: list[RowGroup] = []
        self._logit_rows: list[RowGroup] = []
        self._linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        #: Modules that read the same input, by each of them; learnt by ``watch_inputs``.
        self._siblings: dict[str, tuple[str, ...]] = {name: (name,) for name in self._linears}
        #: First products of the input seen last, by the siblings and the row group they were computed for.
        self._last_input: torch.Tensor | None = None
        self._last_products: dict[tuple[tuple[str, ...], Ids], torch.Tensor] = {}
        for name, module in self._linears.items():
            on_logits = module is head
            module.register_forward_hook(self._linear_hook(name, on_logits=on_logits))
        for index, block in enumerate(blocks):
            block.register_forward_hook(self._block_hook(index))
        head.register_forward_hook(self._head_hook())

    def add(self, engine_id: int, adapter: ResidentAdapter) -> None:
        """Make an adapter usable in the next step."""
        self.adapters[engine_id] = adapter

    def remove(self, engine_id: int) -> None:
        """Forget an adapter; no row of a later step may name it."""
        self.adapters.pop(engine_id, None)
        self._packs.forget(engine_id)

    def order(self, engine_id: int) -> tuple[int, int]:
        """Sort key of an adapter's rows: the base first, then bucket by bucket."""
        return (0, 0) if engine_id == BASE else (self.adapters[engine_id].bucket, engine_id)

    def begin(self, runs: Sequence[Run], logit_runs: Sequence[Run], device: torch.device) -> None:
        """State the rows of the next forward pass, in the order of ``order``."""

        def bucket(engine_id: int) -> int:
            return self.adapters[engine_id].bucket

        self._rows = group_rows(runs, bucket, device)
        self._logit_rows = group_rows(logit_runs, bucket, device)
        self._last_input = None
        self._last_products = {}

    def watch_inputs(self) -> Callable[[], None]:
        """Learn, during one forward pass, which linear modules read the same tensor (q, k, v; gate, up). Returns the
        function that ends the watching."""
        readers: dict[int, list[str]] = {}
        alive: list[torch.Tensor] = []  # an id is only unique among living tensors

        def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
            def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                alive.append(inputs[0])
                readers.setdefault(id(inputs[0]), []).append(name)

            return hook

        handles = [module.register_forward_pre_hook(watch(name)) for name, module in self._linears.items()]

        def stop() -> None:
            for handle in handles:
                handle.remove()
            for names in readers.values():
                self._siblings.update({name: tuple(names) for name in names})

        return stop

    # Hooks

    def _linear_hook(self, name: str, *, on_logits: bool) -> Hook:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            for group in self._logit_rows if on_logits else self._rows:
                self._add_linear(name, module, group, inputs[0], output[0])

        return hook

    def _add_linear(self, name: str, module: nn.Module, group: RowGroup, x: torch.Tensor, output: torch.Tensor) -> None:
        siblings = self._siblings[name]
        adapters = [self.adapters[engine_id] for engine_id in group.ids]
        down = self._packs.get(group.ids, siblings, lambda: pack_down(adapters, siblings))
        if down is None or name not in down.columns:
            return
        if self._last_input is not x:
            self._last_input, self._last_products = x, {}
        hidden = self._last_products.get((siblings, group.ids))
        if hidden is None:
            hidden = torch.bmm(group.read(x[0]), down.weight)
            self._last_products[siblings, group.ids] = hidden
        up = self._packs.get(group.ids, name, lambda: pack_up(adapters, name))
        column = down.columns[name]
        hidden = hidden[:, :, column : column + down.bucket]
        rows = output[group.start : group.end]
        if up.scale is None and group.real is None:
            rows.view(len(group.ids), group.n, -1).baddbmm_(hidden, up.weight)
        elif up.scale is None:
            rows += group.flat(torch.bmm(hidden, up.weight))
        else:
            # DoRA scales the whole product, but not the bias.
            bias = module.bias if isinstance(module.bias, torch.Tensor) else 0
            scale = group.flat(up.scale.expand(-1, group.n, -1))
            rows.copy_((rows - bias + group.flat(torch.bmm(hidden, up.weight))) * scale + bias)

    def _block_hook(self, index: int) -> Hook:
        def part(adapter: ResidentAdapter) -> ResidentBottleneck | None:
            return adapter.blocks.get(index)

        def hook(_: nn.Module, __: tuple[torch.Tensor, ...], output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            for group in self._rows:
                pack = self._neck(group, index, part)
                if pack is not None:
                    rows = hidden[0]
                    rows[group.start : group.end] += group.flat(pack.apply(group.read(rows)))

        return hook

    def _head_hook(self) -> Hook:
        def part(adapter: ResidentAdapter) -> ResidentBottleneck | None:
            return adapter.head

        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            for group in self._logit_rows:
                pack = self._neck(group, "head", part)
                if pack is not None:
                    output[0, group.start : group.end] += group.flat(pack.apply(group.read(inputs[0][0])))

        return hook

    def _neck(
        self, group: RowGroup, site: int | str, part: Callable[[ResidentAdapter], ResidentBottleneck | None]
    ) -> NeckPack | None:
        adapters = [self.adapters[engine_id] for engine_id in group.ids]
        return self._packs.get(group.ids, site, lambda: pack_necks([part(adapter) for adapter in adapters]))
