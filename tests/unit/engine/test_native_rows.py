"""Rows that decode, computed by the compiled loop, equal each row alone; what it does not know takes another way."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.torch

WIDTH, RANK, OUT, SIBLINGS, CAPACITY = 37, 8, 50, 3, 12


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    before=st.integers(0, 3),
    column=st.integers(0, SIBLINGS - 1),
    kind=st.sampled_from(["float32", "bfloat16", "float16"]),
    scaled=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 100),
)
def test_rows_equal_those_of_each_adapter_alone(
    counts: list[int], before: int, column: int, kind: str, scaled: bool, biased: bool, seed: int
) -> None:
    import torch

    from graft_server.engine.native.lora import NativeLayer, native_lora
    from graft_server.engine.torch.native_rows import NativeRows
    from graft_server.engine.torch.rows import Placed
    from graft_server.engine.torch.stack import LinearSite

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
    x, output, bias = tensor(row + 2, WIDTH), tensor(row + 2, OUT), tensor(OUT) if biased else None
    down, up = tensor(CAPACITY, WIDTH, SIBLINGS * RANK) / WIDTH, tensor(CAPACITY, RANK, OUT)
    scale = 1 + tensor(CAPACITY, 1, OUT).abs() if scaled else None
    columns = slice(column * RANK, (column + 1) * RANK)
    site = LinearSite(down, columns, up, scale, NativeLayer(down[:, :, columns], up, [0, OUT]))
    expected = output.float()
    for run in runs:
        own = slice(run.start, run.end)
        expected[own] += x[own].float() @ down[run.position, :, columns].float() @ up[run.position].float()
        if scale is not None:
            without = 0 if bias is None else bias.float()
            expected[own] = (expected[own] - without) * scale[run.position].float() + without
    NativeRows(native, RANK, runs, row).add_linear(output, x, site, bias)
    tolerance = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}[kind]
    torch.testing.assert_close(output.float(), expected, rtol=tolerance, atol=tolerance)
