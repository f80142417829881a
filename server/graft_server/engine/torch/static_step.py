"""One step in tensors that stay where they are, so that a recorded computation can be given another step."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch

from graft_server.engine.torch.batch import Batch, LoneRows
from graft_server.engine.torch.indexed import RowIndex, most_tiles, tile_rows
from graft_server.engine.torch.sequence import Chunk

_TILE = 3


@dataclass(frozen=True, slots=True)
class Sizes:
    """``rows`` tokens of ``sequences`` sequences, each with ``blocks`` blocks of context."""

    rows: int
    sequences: int
    blocks: int


class StaticStep:
    """A step of certain sizes; smaller ones are padded.

    All that a step is are numbers in one tensor, which reach a GPU as one copy; ``batch`` computes the rest from them
    there. Every row attends by itself, with the blocks of its sequence and its own length. ``index`` has, for each
    bucket in use, where each row has its adapter in that stack, and ``logit_index`` the same for the last row of each
    sequence. Padding rows have no adapter, and look at and write to ``scratch_block``, a block of the KV cache that no
    sequence has.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        capacities: Mapping[int, int],
        scratch_block: int,
        block_size: int,
        device: torch.device,
    ) -> None:
        """``capacities``: the positions of each bucket's stack."""
        self._sizes = sizes
        self._scratch_block = scratch_block
        self._block_size = block_size
        rows, sequences = sizes.rows, sizes.sequences
        parts = [rows, rows, rows, sequences, (sequences + 1) * sizes.blocks]
        self._capacities = capacities
        for capacity in capacities.values():
            for count in (rows, sequences):
                parts += [count, _TILE * most_tiles(count, capacity)]
        self._numbers = torch.empty(sum(parts), dtype=torch.int32, device=device)
        views: list[torch.Tensor] = list(torch.split(self._numbers, parts))
        self._tokens, self._positions, self._owners, self._last, table, *indices = views
        self._table = table.view(sequences + 1, sizes.blocks)
        made = [RowIndex(own, tiles.view(-1, _TILE)) for own, tiles in zip(indices[::2], indices[1::2], strict=True)]
        self.index = dict(zip(capacities, made[::2], strict=True))
        self.logit_index = dict(zip(capacities, made[1::2], strict=True))

    def fill(self, chunks: Many[Chunk], positions: Mapping[int, Many[int]]) -> None:
        """Have a step's rows in front and padding behind them.

        ``positions``: for each bucket, the position of each chunk's adapter in its stack, or -1.
        """
        sizes = self._sizes
        tokens, places, owners, last = array("i"), array("i"), array("i"), array("i")
        table = array("i")
        for i, chunk in enumerate(chunks):
            tokens.extend(chunk.sequence.tokens[chunk.start : chunk.end])
            places.extend(range(chunk.start, chunk.end))
            owners.extend([i] * chunk.count)
            last.append(len(tokens) - 1)
            blocks = chunk.sequence.blocks[: sizes.blocks]
            table.extend(blocks)
            table.extend([self._scratch_block] * (sizes.blocks - len(blocks)))
        padding = sizes.rows - len(tokens)
        missing = sizes.sequences - len(chunks)
        tokens.extend([0] * padding)
        places.extend([0] * padding)
        # The sequence behind all others is padding, whatever there is.
        owners.extend([sizes.sequences] * padding)
        last.extend([0] * missing)
        table.extend([self._scratch_block] * ((missing + 1) * sizes.blocks))
        numbers = tokens + places + owners + last + table
        for bucket, capacity in self._capacities.items():
            own = positions[bucket]
            by_row = [position for position, chunk in zip(own, chunks, strict=True) for _ in range(chunk.count)]
            for indexed, count in ((by_row, sizes.rows), (own, sizes.sequences)):
                numbers.extend(indexed)
                numbers.extend([-1] * (count - len(indexed)))
                tiles = tile_rows(indexed)
                for tile in tiles:
                    numbers.extend(tile)
                numbers.extend([0] * (_TILE * (most_tiles(count, capacity) - len(tiles))))
        # Waits for the copy: nobody else waits for a step in the middle of a prompt before the next one comes here.
        self._numbers.copy_(torch.frombuffer(numbers, dtype=torch.int32))

    def batch(self) -> Batch:
        """The step that was filled in; to be computed with it."""
        size = self._block_size
        positions = self._positions.long()
        table = self._table[self._owners.long()]
        blocks = table.gather(1, (positions // size)[:, None])[:, 0]
        return Batch(
            tokens=self._tokens.long()[None],
            positions=positions[None],
            places=blocks.long() * size + positions % size,
            groups=[],
            lone=LoneRows(None, table, self._positions + 1),
            adapters=[],
            logit_rows=self._last.long(),
            logit_adapters=[],
            wanted=[],
        )
