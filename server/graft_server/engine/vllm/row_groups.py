"""The rows of a step by the slot of their adapter, laid out once for all layers. Only torch: no vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

#: Slots share a product while padding at most doubles its rows, or while its rows are few anyway.
_FEW_ROWS = 64


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows of the adapters in the slots ``places``, ``P`` of them with ``n`` rows each.

    ``gather`` (``[P * n]``) says which rows to read, a padded place repeating some row. ``real`` says which of those
    places the rows at ``targets`` are, in ascending order of rows; ``targets`` is ``None`` where those are all rows.
    """

    places: slice
    n: int
    gather: torch.Tensor
    real: torch.Tensor
    targets: torch.Tensor | None

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """``[T, width]`` to ``[P, n, width]``."""
        return rows.index_select(0, self.gather).view(self.places.stop - self.places.start, self.n, -1)

    def add(self, output: torch.Tensor, update: torch.Tensor) -> None:
        """``output`` (``[T, width]``) plus ``update`` (``[P, n, width]``) at this group's rows."""
        own = update.flatten(0, 1).index_select(0, self.real)
        if self.targets is None:
            output.add_(own)
        else:  # on CPUs several times as fast as `index_add_`
            output.index_copy_(0, self.targets, own.add_(output.index_select(0, self.targets)))


def group_rows(slots: Sequence[int], device: torch.device | str) -> list[RowGroup]:
    """Group rows by their slots (``[T]``, -1 for the base model, which is in no group): those slots together that have
    similarly many rows and lie close to each other."""
    rows: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot >= 0:
            rows.setdefault(slot, []).append(row)
    together = sorted(rows, key=lambda slot: len(rows[slot]), reverse=True)
    alone: list[int] = []
    while len(together) > 1:
        spread = 1 + max(together) - min(together)
        if len(rows[together[0]]) * spread <= max(2 * sum(len(rows[slot]) for slot in together), _FEW_ROWS):
            break
        alone.append(together.pop(0))
    groups = [[slot] for slot in alone] + ([sorted(together)] if together else [])
    return [_group({slot: rows[slot] for slot in group}, len(slots), device) for group in groups]


def _group(rows: dict[int, list[int]], total: int, device: torch.device | str) -> RowGroup:
    first, last = min(rows), max(rows)
    n = max(map(len, rows.values()))
    some = rows[first][0]
    gather = [row for slot in range(first, last + 1) for row in _padded(rows.get(slot, []), n, some)]
    place_of = {row: (slot - first) * n + at for slot, own in rows.items() for at, row in enumerate(own)}
    targets = sorted(place_of)
    return RowGroup(
        slice(first, last + 1),
        n,
        torch.tensor(gather, device=device),
        torch.tensor([place_of[row] for row in targets], device=device),
        None if len(targets) == total else torch.tensor(targets, device=device),
    )


def _padded(rows: list[int], n: int, filler: int) -> list[int]:
    return rows + [filler] * (n - len(rows))
