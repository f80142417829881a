"""Rows that decode, computed by the compiled loop, equal each row alone; what it does not know takes another way."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.torch

WIDTH, RANK, CAPACITY = 37, 8, 12


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    before=st.integers(0, 3),
    ends=st.sampled_from([(0, 50), (0, 30, 50), (0, 16, 17, 50)]),
    unused=st.sampled_from([None, 0, 1]),
    kind=st.sampled_from(["float32", "bfloat16", "float16"]),
    scaled=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 100),
)
def test_rows_equal_those_of_each_adapter_alone(
    counts: list[int],
    before: int,
    ends: tuple[int, ...],
    unused: int | None,
    kind: str,
    scaled: bool,
    biased: bool,
    seed: int,
) -> None:
    import torch

    from graft_server.engine.native.lora import native_lora
    from graft_server.engine.torch.native_rows import NativeRows
    from graft_server.engine.torch.rows import Placed
    from graft_server.engine.torch.stack import LinearSite, LinearWeights, Part

    native = native_lora()
    if native is None:
        pytest.skip("no C++ compiler is here")
    random, dtype = torch.Generator().manual_seed(seed), getattr(torch, kind)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    runs, row = [], before
    for position, count in enumerate(counts):
        runs.append(Placed(position, row, row + count))
        row += count
    out, modules = ends[-1], len(ends) - 1
    x, output, bias = tensor(row + 2, WIDTH), tensor(row + 2, out), tensor(out) if biased else None
    down, up = tensor(CAPACITY, WIDTH, modules * RANK) / WIDTH, tensor(CAPACITY, RANK, out)
    excess = tensor(CAPACITY, 1, out).abs()
    all_parts = [Part(at * RANK, begin, end) for at, (begin, end) in enumerate(pairwise(ends))]
    parts = tuple(part for at, part in enumerate(all_parts) if at != unused or modules == 1)
    site = LinearSite.of(LinearWeights(down, up, excess), parts, parts[-1:] if scaled else ())
    expected = output.float()
    for run in runs:
        for part in parts:
            own, columns = slice(part.begin, part.end), slice(part.column, part.column + RANK)
            rows = expected[run.start : run.end, own]
            first = x[run.start : run.end].float() @ down[run.position, :, columns].float()
            rows += first @ up[run.position, :, own].float()
            if part in site.scaled:
                without = 0 if bias is None else bias[own].float()
                rows += (rows - without) * excess[run.position, :, own].float()
    NativeRows(native, RANK, runs, row).add_linear(output, x, site, bias)
    tolerance = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}[kind]
    torch.testing.assert_close(output.float(), expected, rtol=tolerance, atol=tolerance)
