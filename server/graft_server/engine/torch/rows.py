"""Rows of a step grouped by adapter, so that many adapters are one batched product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from graft_server.engine.torch.stack import LinearSite, NeckWeights

#: Adapter id, first row, end row.
Run = tuple[int, int, int]

#: Adapters share a product while padding at most doubles its rows, or while its rows are few anyway.
_FEW_ROWS = 64


class MixedRows(Protocol):
    """Rows of a step whose adapters are in one stack, and how their products are computed.

    ``x``: ``[T, in]``, ``output``: ``[T, out]``, all rows of the step.
    """

    @property
    def bucket(self) -> int: ...

    def add_linear(self, output: torch.Tensor, x: torch.Tensor, site: LinearSite, bias: torch.Tensor | None) -> None:
        """Add what the adapters make of ``x`` to the ``output`` of a unit's linear modules, and apply DoRA's scale to
        everything but the bias."""
        ...

    def add_neck(self, output: torch.Tensor, x: torch.Tensor, neck: NeckWeights) -> None:
        """Add what the rows' bottlenecks make of ``x``."""
        ...


@dataclass(frozen=True, slots=True)
class Placed:
    """The rows ``start : end`` of the adapter at a position of its stack."""

    position: int
    start: int
    end: int

    @property
    def count(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows of the adapters at ``places`` of one stack, ``P`` positions with ``n`` rows each.

    Where every position has exactly ``n`` rows and they lie together, they are ``start : end``. Else ``gather``
    (``[P * n]``) says which rows to read, a padded place repeating some row, ``real`` which of those places are rows,
    and ``targets`` where they belong.
    """

    bucket: int
    places: slice
    n: int
    start: int = 0
    end: int = 0
    gather: torch.Tensor | None = None
    real: torch.Tensor | None = None
    targets: torch.Tensor | None = None

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """``[T, width]`` to ``[P, n, width]``; a view where the counts are equal."""
        picked = rows[self.start : self.end] if self.gather is None else rows.index_select(0, self.gather)
        return picked.view(self.places.stop - self.places.start, self.n, -1)

    def add_linear(self, output: torch.Tensor, x: torch.Tensor, site: LinearSite, bias: torch.Tensor | None) -> None:
        weights = site.weights
        hidden, up = torch.bmm(self.read(x), weights.down[self.places]), weights.up[self.places]
        for part in site.parts:
            outputs = slice(part.begin, part.end)
            first, own = hidden[:, :, part.column : part.column + up.shape[1]], output[:, outputs]
            if self.real is None:
                own[self.start : self.end].view(*first.shape[:2], -1).baddbmm_(first, up[:, :, outputs])
            else:
                self.add(own, torch.bmm(first, up[:, :, outputs]))
        self.scale_linear(output, site, bias)

    def scale_linear(self, output: torch.Tensor, site: LinearSite, bias: torch.Tensor | None) -> None:
        """Apply DoRA's scale to everything but the bias; rows of adapters without one stay as they are."""
        for part in site.scaled:
            assert site.weights.excess is not None
            outputs = slice(part.begin, part.end)
            excess = self.flat(site.weights.excess[self.places, :, outputs].expand(-1, self.n, -1))
            own = self.take(output[:, outputs])
            without = own if bias is None else own - bias[outputs]
            self.put(output[:, outputs], own + without * excess)

    def add_neck(self, output: torch.Tensor, x: torch.Tensor, neck: NeckWeights) -> None:
        self.add(output, neck.apply(self.read(x), self.places))

    def add(self, output: torch.Tensor, update: torch.Tensor) -> None:
        """``output`` (``[T, width]``) plus ``update`` (``[P, n, width]``) at this group's rows."""
        if self.targets is None or self.real is None:
            output[self.start : self.end] += update.flatten(0, 1)
        else:
            output.index_add_(0, self.targets, update.flatten(0, 1).index_select(0, self.real))

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """This group's rows of ``[T, width]``, one behind the other, without padding."""
        return rows[self.start : self.end] if self.targets is None else rows.index_select(0, self.targets)

    def put(self, rows: torch.Tensor, values: torch.Tensor) -> None:
        """The opposite of ``take``."""
        if self.targets is None:
            rows[self.start : self.end] = values
        else:
            rows.index_copy_(0, self.targets, values)

    def flat(self, grouped: torch.Tensor) -> torch.Tensor:
        """``[P, n, width]`` in the order of ``take``."""
        flat = grouped.flatten(0, 1)
        return flat if self.real is None else flat.index_select(0, self.real)


def group_rows(bucket: int, runs: Sequence[Placed], device: torch.device) -> list[RowGroup]:
    """One bucket's runs, in the order of their positions: those of similar size as one group, a far larger one
    (a long prompt among sequences that decode) by itself."""
    together = sorted(runs, key=lambda run: run.count, reverse=True)
    alone: list[Placed] = []
    while len(together) > 1:
        spread = 1 + max(run.position for run in together) - min(run.position for run in together)
        if together[0].count * spread <= max(2 * sum(run.count for run in together), _FEW_ROWS):
            break
        alone.append(together.pop(0))
    groups = [[run] for run in alone] + ([sorted(together, key=lambda run: run.position)] if together else [])
    return [_group(bucket, group, device) for group in groups]


def _group(bucket: int, runs: Sequence[Placed], device: torch.device) -> RowGroup:
    first, end = runs[0].position, runs[-1].position + 1
    n = max(run.count for run in runs)
    rows = sum(run.count for run in runs)
    places = slice(first, end)
    contiguous = runs[-1].end - runs[0].start == rows
    if contiguous and rows == n * (end - first):
        return RowGroup(bucket, places, n, runs[0].start, runs[-1].end)
    gather = [runs[0].start] * ((end - first) * n)
    real: list[int] = []
    targets: list[int] = []
    for run in runs:
        at = (run.position - first) * n
        gather[at : at + run.count] = range(run.start, run.end)
        real += range(at, at + run.count)
        targets += range(run.start, run.end)
    index = torch.tensor([*gather, *real, *targets], device=device)
    padded = len(gather)
    return RowGroup(
        bucket, places, n, gather=index[:padded], real=index[padded : padded + rows], targets=index[padded + rows :]
    )
