"""Which rows make up which step: buckets of similar length in a shuffled order, a pure function of seed and epoch.

A step is found from its number alone, so a resumed run needs no more than that to go on where it was.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

#: Rows are sorted by length within windows of this many batches: long enough to save nearly all padding, short
#: enough that an epoch mixes rows of all kinds.
_WINDOW = 50

#: Row indices of one forward pass.
Batch = tuple[int, ...]


class BatchPlan:
    """The steps of a run over rows of these lengths (in tokens); each step is a list of batches to accumulate."""

    def __init__(self, lengths: Sequence[int], *, batch_size: int, accumulation: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._accumulation = accumulation
        self._seed = seed
        batches = -(-len(lengths) // batch_size)
        self.steps_per_epoch = -(-batches // accumulation)
        self._epoch = lru_cache(maxsize=1)(self._plan_epoch)

    def step(self, number: int) -> list[Batch]:
        """The batches of optimiser step ``number``, counted from 0 over all epochs."""
        epoch, index = divmod(number, self.steps_per_epoch)
        first = index * self._accumulation
        return self._epoch(epoch)[first : first + self._accumulation]

    def _plan_epoch(self, epoch: int) -> list[Batch]:
        rng = random.Random(f"{self._seed}:{epoch}")
        order = list(range(len(self._lengths)))
        rng.shuffle(order)
        window = self._batch_size * _WINDOW
        batches: list[Batch] = []
        for start in range(0, len(order), window):
            near = sorted(order[start : start + window], key=self._lengths.__getitem__)
            batches += [tuple(near[at : at + self._batch_size]) for at in range(0, len(near), self._batch_size)]
        rng.shuffle(batches)
        return batches
