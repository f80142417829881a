"""Rows that decode on a CPU: one call of C++ for linear modules that are one, whatever the mixture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from graft_server.engine.native.lora import NativeLora, sort_rows
from graft_server.engine.torch.rows import Placed, RowGroup, group_rows
from graft_server.engine.torch.stack import LinearSite, NeckWeights

#: Rows of one adapter above which batched products are faster: they read a weight once, C++ once for a few rows.
MOST_ROWS = 32


class NativeRows:
    """Rows of one stack; ``runs`` are their places among the ``count`` rows of the step. What the C++ does not know,
    which is DoRA's scale, bottlenecks and float16, is left to torch's operations on groups of the same rows."""

    def __init__(self, native: NativeLora, bucket: int, runs: Sequence[Placed], count: int) -> None:
        self.bucket = bucket
        self._native = native
        self._runs = runs
        slots = torch.full((count,), -1, dtype=torch.int32)
        for run in runs:
            slots[run.start : run.end] = run.position
        self._step = sort_rows(slots)

    @cached_property
    def _groups(self) -> list[RowGroup]:
        return group_rows(self.bucket, self._runs, torch.device("cpu"))

    def add_linear(self, output: torch.Tensor, x: torch.Tensor, site: LinearSite, bias: torch.Tensor | None) -> None:
        if not self._native.serves(output, x, site.weights.up):
            for group in self._groups:
                group.add_linear(output, x, site, bias)
            return
        for outputs, layer in site.native:
            self._native.add(output[:, outputs], x, layer, self._step, 1.0)
        if site.scaled:
            for group in self._groups:
                group.scale_linear(output, site, bias)

    def add_neck(self, output: torch.Tensor, x: torch.Tensor, neck: NeckWeights) -> None:
        for group in self._groups:
            group.add_neck(output, x, neck)
