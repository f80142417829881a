"""Rows of a step grouped by adapter, so that a group of adapters is one batched product."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from graft_server.engine.torch.sequence import BASE

Ids = tuple[int, ...]
#: Adapter id, first row, end row.
Run = tuple[int, int, int]

#: Adapters share a product while padding at most doubles their rows, or while the rows are few anyway.
_FEW_ROWS = 64


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows ``start : end`` of ``G`` adapters, ``n`` rows each.

    Where the counts differ, ``gather`` (``[G * n]``) says which rows to read, a padded place repeating one, and
    ``real`` (``[end - start]``) which of those places are rows.
    """

    ids: Ids
    start: int
    end: int
    n: int
    gather: torch.Tensor | None = None
    real: torch.Tensor | None = None

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """``[T, width]`` to ``[G, n, width]``; a view where the counts are equal."""
        picked = rows[self.start : self.end] if self.gather is None else rows[self.gather]
        return picked.view(len(self.ids), self.n, -1)

    def flat(self, grouped: torch.Tensor) -> torch.Tensor:
        """``[G, n, width]`` to ``[end - start, width]``, the real rows only."""
        flat = grouped.flatten(0, 1)
        return flat if self.real is None else flat[self.real]


def group_rows(runs: Iterable[Run], bucket_of: Callable[[int], int], device: torch.device) -> list[RowGroup]:
    """Neighbouring runs of one rank bucket and of similar size as groups; base rows are in none."""
    groups: list[list[Run]] = []
    for run in runs:
        if run[0] == BASE:
            continue
        if groups and bucket_of(groups[-1][0][0]) == bucket_of(run[0]):
            together = [*groups[-1], run]
            most = max(end - start for _, start, end in together)
            rows = run[2] - together[0][1]
            if most * len(together) <= max(2 * rows, _FEW_ROWS):
                groups[-1].append(run)
                continue
        groups.append([run])
    return [_row_group(group, device) for group in groups]


def _row_group(runs: list[Run], device: torch.device) -> RowGroup:
    ids = tuple(adapter for adapter, _, _ in runs)
    start, end = runs[0][1], runs[-1][2]
    counts = [last - first for _, first, last in runs]
    most = max(counts)
    if min(counts) == most:
        return RowGroup(ids, start, end, most)
    gather = [first + min(i, last - first - 1) for _, first, last in runs for i in range(most)]
    real = [g * most + i for g, count in enumerate(counts) for i in range(count)]
    return RowGroup(ids, start, end, most, torch.tensor(gather, device=device), torch.tensor(real, device=device))
