"""How rows are sorted for the compiled loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graft_server.engine.native.lora import sort_rows

pytestmark = pytest.mark.torch


@given(st.lists(st.integers(-1, 7), max_size=100))
def test_each_row_with_an_adapter_is_in_one_block_of_its_slot(slots: list[int]) -> None:
    step = sort_rows(torch.tensor(slots, dtype=torch.long))
    placed = {}
    for slot, first, count in step.blocks.tolist():
        assert 1 <= count <= 8
        for row in step.rows[first : first + count].tolist():
            assert row not in placed
            placed[row] = slot
    assert placed == {row: slot for row, slot in enumerate(slots) if slot >= 0}
