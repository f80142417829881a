"""LoRA on CPUs for vLLM: rows sorted by adapter once a step, one call of C++ a layer.

vLLM's own wrapper for CPUs copies A and B of its adapter for each token. Here each layer's weights are laid out once as
products need them, q, k and v (and gate and up) side by side, since they read the same input (Punica: Chen et al. 2023;
S-LoRA: Sheng et al. 2023). Base rows cost nothing. Where the C++ can't be compiled, a few batched products a layer do
the same.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from graft_server.engine.native.lora import NativeLayer, NativeStep, native_lora, sort_rows
from graft_server.engine.vllm.row_groups import RowGroup, group_rows


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
    """vLLM's wrapper with other arithmetic, for linear layers, embeddings and the output layer.

    Inside ``torch.compile`` it is vLLM's own, since the groups of a step are no part of a graph.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._native = native_lora()
        self._step: NativeStep | None = None
        self._grouped: list[RowGroup] | None = None
        self._packed: dict[int, PackedLayer] = {}

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """vLLM says which slot each token of the next step belongs to."""
        super().update_metadata(*args, **kwargs)
        self._step = sort_rows(self.token_lora_indices)
        self._grouped = None

    @property
    def _groups(self) -> list[RowGroup]:
        """The step's rows for batched products: laid out only for a step that has such products."""
        if self._grouped is None:
            self._grouped = group_rows(self.token_lora_indices.tolist(), self.device)
        return self._grouped

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """Add each row's adapter to ``y`` (``[T, out]``, changed in place), from ``x`` (``[T, in]``)."""
        if torch.compiler.is_compiling():
            super().add_lora_linear(y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, **kwargs)
            return
        assert self._step is not None, "vLLM says whose rows they are before a layer has some"
        if not self._step.struct.count:
            return
        key = id(lora_a_stacked[0])
        layer = self._packed.get(key)
        if layer is None:
            layer = self._packed[key] = PackedLayer(lora_a_stacked, lora_b_stacked)
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        if self._native is not None and self._native.serves(y, x, layer.up):
            self._native.add(y, x, layer.native, self._step, scale)
        else:
            self._add_products(y, x, layer, scale)

    def _add_products(self, y: torch.Tensor, x: torch.Tensor, layer: PackedLayer, scale: float) -> None:
        for group in self._groups:
            hidden = torch.bmm(group.read(x), layer.down[group.places]) * scale
            for at, (start, end) in enumerate(itertools.pairwise(layer.ends)):
                own = hidden[:, :, at * layer.rank : (at + 1) * layer.rank]
                group.add(y[:, start:end], torch.bmm(own, layer.up[group.places, :, start:end]))

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        """Add each row's adapter to ``y`` (``[T, width]``), from its rows of A (``[T, R]``)."""
        if torch.compiler.is_compiling():
            super().add_lora_embedding(y, x, lora_b_stacked, add_inputs, **kwargs)
            return
        if not x.any():  # nobody's adapter has embeddings
            return
        for group in self._groups:
            group.add(y, torch.bmm(group.read(x), lora_b_stacked[group.places].squeeze(1).transpose(1, 2)))

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        """Add each row's adapter to the logits ``y`` (``[T, vocabulary]``). vLLM's own also does the product for base
        rows and for adapters that leave the output layer alone, which costs more than all other layers together."""
        if not lora_a_stacked.any():
            return
        for group in group_rows(self.sampler_indices.tolist(), self.device):
            down = lora_a_stacked[group.places].squeeze(1)
            if not down.any():
                continue
            hidden = torch.bmm(group.read(x), down.transpose(1, 2)) * scale
            update = torch.bmm(hidden, lora_b_stacked[group.places].squeeze(1).transpose(1, 2))
            group.add(y, update[:, :, : y.shape[1]])


class PackedLayer:
    """One layer's A and B of all slots in the layout of batched products.

    The tensors that vLLM writes adapters into become views of this one's memory, so there is no copy to keep in step.
    """

    def __init__(self, a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> None:
        slots, _, self.rank, width = a[0].shape
        ends = [0, *itertools.accumulate(part.shape[2] for part in b)]
        #: ``[slots, in, slices * R]`` and ``[slots, R, out]``.
        self.down = a[0].new_empty(slots, width, len(a) * self.rank)
        self.up = b[0].new_empty(slots, self.rank, ends[-1])
        for at, part in enumerate(a):
            _move(part, self.down[:, :, at * self.rank : (at + 1) * self.rank])
        for part, (start, end) in zip(b, itertools.pairwise(ends), strict=True):
            _move(part, self.up[:, :, start:end])
        self._kept = (a, b)
        #: Where each slice of the output begins, and where the last one ends.
        self.ends = ends
        self.native = NativeLayer(self.down, self.up, ends)


def _move(tensor: torch.Tensor, target: torch.Tensor) -> None:
    """Have ``tensor`` (``[slots, 1, N, K]``) live in the memory of ``target`` (``[slots, K, N]``)."""
    view = target.transpose(1, 2).unsqueeze(1)
    view.copy_(tensor)
    tensor.set_(view)  # type: ignore[call-overload]  # torch takes a tensor here; its stubs know only storages
