"""Linear layers with packed weights give what they gave, in as much memory as they may have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graft_server.engine.torch.packed import pack_linears

pytestmark = pytest.mark.torch


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(7)
    layers = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 24, bias=False), nn.Linear(24, 100, bias=False))
    return layers.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("rows", [1, 3, 9, 64, 65, 200])
def test_packed_layers_compute_the_same(rows: int) -> None:
    plain, packed = model(), model()
    if pack_linears(packed) == 0:
        pytest.skip("torch has no oneDNN for this processor")
    x = torch.randn(1, rows, 24)
    with torch.inference_mode():
        for one, other in zip(plain, packed, strict=True):
            torch.testing.assert_close(other(x), one(x), rtol=1e-5, atol=1e-5)
            x = one(x)


def test_hooks_and_plain_weights_stay() -> None:
    packed = model()
    seen: list[torch.Size] = []
    packed[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    before = packed[0].weight.clone()
    pack_linears(packed)
    packed(torch.randn(2, 24))
    assert seen == [torch.Size([2, 40])]
    assert torch.equal(packed[0].weight, before)


def test_the_first_ones_are_packed_and_the_budget_holds() -> None:
    packed = model()
    first, last = packed[2].weight.nbytes, packed[1].weight.nbytes
    used = pack_linears([packed[2], packed[1], packed[0]], budget=first + last)
    if used == 0:
        pytest.skip("torch has no oneDNN for this processor")
    assert used == first + last
    assert ["forward" in vars(layer) for layer in packed] == [False, True, True]


def test_other_types_are_left_alone() -> None:
    half = model(torch.bfloat16)
    assert pack_linears(half) == 0
    assert not any("forward" in vars(layer) for layer in half)
