"""One decode step in tensors that stay where they are, so that a recorded computation can be given another step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from graft_server.engine.torch.batch import AttentionGroup, Batch


class StaticStep:
    """``batch`` has ``rows`` rows of one token, each with ``blocks`` blocks of context; ``positions`` has, for each
    bucket in use, each row's position in that stack, ``[rows]`` (int32).

    Rows behind those of the step are padding: they have no adapter, and look at and write to ``scratch_block``, a block
    of the KV cache that no sequence has.
    """

    def __init__(
        self,
        rows: int,
        blocks: int,
        *,
        buckets: Iterable[int],
        scratch_block: int,
        block_size: int,
        device: torch.device,
    ) -> None:
        self._scratch_block = scratch_block
        self._scratch_place = scratch_block * block_size
        self._numbers = torch.arange(rows, device=device)
        self._group = AttentionGroup(
            queries=torch.empty(rows, 1, dtype=torch.long, device=device),
            blocks=torch.empty(rows, blocks, dtype=torch.long, device=device),
            mask=torch.empty(rows, 1, blocks * block_size, dtype=torch.bool, device=device),
            rows=torch.empty(rows, dtype=torch.long, device=device),
            cells=self._numbers,
        )
        self.batch = Batch(
            tokens=torch.zeros(1, rows, dtype=torch.long, device=device),
            positions=torch.zeros(1, rows, dtype=torch.long, device=device),
            places=torch.empty(rows, dtype=torch.long, device=device),
            groups=[self._group],
            adapters=[],
            logit_rows=self._numbers,
            logit_adapters=[],
            wanted=[],
        )
        self.positions = {bucket: torch.empty(rows, dtype=torch.int32, device=device) for bucket in buckets}

    def fill(self, batch: Batch, positions: Mapping[int, list[int]]) -> None:
        """Have a step's rows in front and padding behind them.

        ``batch`` is a decode step with one attention group; ``positions`` has a list of its rows for each bucket.
        """
        (theirs,), own, rows = batch.groups, self._group, batch.tokens.shape[1]
        self.batch.tokens[:, :rows] = batch.tokens
        self.batch.positions[:, :rows] = batch.positions
        self.batch.places[:rows] = batch.places
        self.batch.places[rows:] = self._scratch_place
        for mine, other in ((own.queries[:, 0], theirs.queries[:, 0]), (own.rows, theirs.rows)):
            mine[:rows] = other
            mine[rows:] = self._numbers[rows:]
        own.blocks.fill_(self._scratch_block)
        own.blocks[:rows, : theirs.blocks.shape[1]] = theirs.blocks
        own.mask.zero_()
        own.mask[:rows, :, : theirs.mask.shape[2]] = theirs.mask
        own.mask[rows:, :, 0] = True
        for bucket, mine in self.positions.items():
            mine[:rows] = torch.tensor(positions[bucket], dtype=torch.int32, device=mine.device)
            mine[rows:] = -1
