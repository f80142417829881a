"""A step laid out for a recording says of each token what the step itself says, and padding touches nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_server.engine.torch.sequence import Chunk, Sequence

pytestmark = pytest.mark.torch

BLOCK, BUCKET, SCRATCH = 4, 16, 99
#: Adapters of the bucket, and for each sequence one of them or none, what of it is computed, and how many tokens are.
CAPACITY = 3
parts_ = st.lists(
    st.tuples(st.integers(-1, CAPACITY - 1), st.integers(0, 9), st.integers(1, 20)), min_size=1, max_size=6
).map(sorted)


def chunks_of(parts: list[tuple[int, int, int]]) -> list[Chunk]:
    """Sequences with tokens and blocks of their own."""
    chunks: list[Chunk] = []
    for i, (_, start, count) in enumerate(parts):
        tokens = [1000 * (i + 1) + place for place in range(start + count)]
        blocks = list(range(10 * i, 10 * i + -(-len(tokens) // BLOCK)))
        chunks.append(Chunk(Sequence(str(i), 0, tokens, blocks=blocks), start, count))
    return chunks


@settings(deadline=None)  # the first example imports torch
@given(parts_, parts_, st.sampled_from([8, 128]))
def test_every_row_is_where_it_belongs(
    before: list[tuple[int, int, int]], parts: list[tuple[int, int, int]], sequences: int
) -> None:
    import torch

    from graft_server.engine.torch.indexed import TILE_ROWS
    from graft_server.engine.torch.static_step import Sizes, StaticStep

    step = StaticStep(
        Sizes(rows=128, sequences=sequences, blocks=8),
        capacities={BUCKET: CAPACITY},
        scratch_block=SCRATCH,
        block_size=BLOCK,
        device=torch.device("cpu"),
    )
    for filled in (before, parts):
        step.fill(chunks_of(filled), {BUCKET: [position for position, _, _ in filled]})
    batch, chunks = step.batch(), chunks_of(parts)
    assert batch.lone is not None
    assert batch.lone.rows is None
    assert not batch.groups
    table = batch.lone.blocks
    row, adapters = 0, []
    for i, ((position, _, _), chunk) in enumerate(zip(parts, chunks, strict=True)):
        for place in range(chunk.start, chunk.end):
            assert (batch.tokens[0, row], batch.positions[0, row]) == (chunk.sequence.tokens[place], place)
            assert batch.places[row] == chunk.sequence.blocks[place // BLOCK] * BLOCK + place % BLOCK
            assert table[row, : len(chunk.sequence.blocks)].tolist() == chunk.sequence.blocks
            assert batch.lone.lengths[row] == place + 1
            adapters.append(position)
            row += 1
        assert batch.logit_rows[i] == row - 1
    assert set((batch.places[row:] // BLOCK).tolist()) <= {SCRATCH}
    assert set(table[row:].flatten().tolist()) <= {SCRATCH}
    for index, own in ((step.index, adapters), (step.logit_index, [position for position, _, _ in parts])):
        positions = index[BUCKET].positions.tolist()
        assert positions == own + [-1] * (len(positions) - len(own))
        tiled = [(first + i, position) for position, first, count in index[BUCKET].tiles.tolist() for i in range(count)]
        assert tiled == [(place, position) for place, position in enumerate(own) if position >= 0]
        assert int(index[BUCKET].tiles[:, 2].max()) <= TILE_ROWS
