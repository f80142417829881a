"""Rows grouped by adapter: each row is in one group, padding is bounded, and products equal a plain loop's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.torch

#: Of the outputs, the first ones are another module's than the rest.
WIDTH, RANK, FIRST, OUT = 3, 2, 3, 4
#: Rows of a product however little of them is real; the module's own figure.
FEW_ROWS = 64


@dataclass(frozen=True)
class Case:
    """``runs``: position, first row and end row of each adapter; ``rows`` of the batch, those of others among them."""

    runs: list[tuple[int, int, int]]
    rows: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    positions = sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=10)))
    # Base rows, and those of other stacks, lie in front and behind; never between two runs of one stack.
    row = draw(st.integers(0, 5))
    runs = []
    for position in positions:
        count = draw(st.one_of(st.just(1), st.integers(1, 6), st.integers(1, 200)))
        runs.append((position, row, row + count))
        row += count
    return Case(runs, row + draw(st.integers(0, 5)))


def groups_of(case: Case) -> list[Any]:
    import torch

    from graft_server.engine.torch.rows import Placed, group_rows

    return group_rows(8, [Placed(*run) for run in case.runs], torch.device("cpu"))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_every_row_is_in_one_group_and_padding_is_bounded(case: Case) -> None:
    import torch

    places = torch.arange(case.rows)[:, None]
    taken: list[int] = []
    for group in groups_of(case):
        own = group.take(places)[:, 0].tolist()
        taken += own
        positions = group.places.stop - group.places.start
        assert group.read(places).shape == (positions, group.n, 1)
        assert group.flat(group.read(places))[:, 0].tolist() == own
        assert positions * group.n <= max(2 * len(own), FEW_ROWS) or positions == 1
        if positions == 1:
            assert group.n == len(own)
    assert sorted(taken) == [row for _, start, end in case.runs for row in range(start, end)]


@settings(max_examples=200, deadline=None)
@given(cases(), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_products_equal_those_of_each_row_alone(case: Case, scaled: bool, biased: bool, seed: int) -> None:
    import torch

    from graft_server.engine.torch.stack import LinearSite, LinearWeights, Part

    random = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    x, output = tensor(case.rows, WIDTH), tensor(case.rows, OUT)
    down, up, excess = tensor(41, WIDTH, 2 * RANK), tensor(41, RANK, OUT), tensor(41, 1, OUT)
    bias = tensor(OUT) if biased else None
    expected = output.clone()
    for position, start, end in case.runs:
        for row in range(start, end):
            hidden = x[row] @ down[position]
            expected[row, :FIRST] += hidden[:RANK] @ up[position, :, :FIRST]
            expected[row, FIRST:] += hidden[RANK:] @ up[position, :, FIRST:]
            if scaled:
                without = 0 if bias is None else bias[FIRST:]
                expected[row, FIRST:] = (expected[row, FIRST:] - without) * (1 + excess[position, 0, FIRST:]) + without
    parts = (Part(0, 0, FIRST), Part(RANK, FIRST, OUT))
    site = LinearSite.of(LinearWeights(down, up, excess), parts, parts[1:] if scaled else ())
    for group in groups_of(case):
        group.add_linear(output, x, site, bias)
    torch.testing.assert_close(output, expected)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_updates_are_added_to_their_own_rows(case: Case) -> None:
    import torch

    output = torch.zeros(case.rows, 1)
    for group in groups_of(case):
        positions = torch.arange(group.places.start, group.places.stop)
        group.add(output, (1.0 + positions)[:, None, None].expand(-1, group.n, -1))
    expected = torch.zeros(case.rows, 1)
    for position, start, end in case.runs:
        expected[start:end] = 1 + position
    assert torch.equal(output, expected)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_what_is_taken_and_put_back_changed_reaches_its_own_rows_only(case: Case) -> None:
    import torch

    rows = torch.zeros(case.rows, 1)
    for number, group in enumerate(groups_of(case), start=1):
        group.put(rows, group.take(rows) + number)
    touched = {row for _, start, end in case.runs for row in range(start, end)}
    assert {row for row in range(case.rows) if rows[row] != 0} == touched


def test_equal_counts_side_by_side_are_read_without_a_copy() -> None:
    import torch

    (group,) = groups_of(Case([(0, 2, 4), (1, 4, 6)], 7))
    rows = torch.zeros(7, WIDTH)
    group.read(rows)[1, 1] = 1.0
    assert rows[5].tolist() == [1.0] * WIDTH


def test_a_long_prompt_does_not_pad_those_that_decode() -> None:
    groups = groups_of(Case([(0, 0, 1), (1, 1, 501), (2, 501, 502)], 502))
    assert sorted((group.n, group.places.stop - group.places.start) for group in groups) == [(1, 3), (500, 1)]
