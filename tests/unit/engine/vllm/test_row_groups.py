"""Rows grouped by slot: whatever the grouping, each row gets its own slot's product and base rows get nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graft_server.engine.vllm.row_groups import group_rows

pytestmark = pytest.mark.torch


@given(st.lists(st.integers(-1, 7), min_size=1, max_size=200))
def test_each_row_gets_its_own_slots_product(slots: list[int]) -> None:
    weights = torch.arange(1.0, 9.0).view(8, 1, 1)
    rows = torch.ones(len(slots), 1)
    output = torch.zeros(len(slots), 1)
    for group in group_rows(slots, "cpu"):
        group.add(output, torch.bmm(group.read(rows), weights[group.places]))
    assert output[:, 0].tolist() == [slot + 1 for slot in slots]


def test_a_long_prompt_is_not_padded_to() -> None:
    groups = group_rows([0] * 500 + [1, 2, 3], "cpu")
    assert [(group.places, group.n) for group in groups] == [(slice(0, 1), 500), (slice(1, 4), 1)]


def test_base_rows_cost_nothing() -> None:
    assert group_rows([-1, -1], "cpu") == []
