"""Our wrapper against vLLM's own: the same numbers in fp32 for mixed batches, base rows and prompts, whether its inner
loop could be compiled here or not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` installs it")

import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from graft_server.engine.native.lora import native_lora
from graft_server.engine.vllm import cpu_lora
from graft_server.engine.vllm.cpu_lora import GroupedPunicaWrapper

pytestmark = [pytest.mark.vllm, pytest.mark.torch]

SLOTS, RANK, WIDTH = 4, 8, 32
MAPPINGS = {
    "decoding": (1, 2, 3, 4, 1, 2, 3, 4),
    "with base rows": (0, 3, 0, 1, 3, 3, 0, 2),
    "a prompt beside decoding": (2,) * 80 + (1, 4, 0),
    "base alone": (0, 0, 0),
}


def stacks(outs: tuple[int, ...]) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    a = tuple(torch.randn(SLOTS, 1, RANK, WIDTH, generator=generator) for _ in outs)
    return a, tuple(torch.randn(SLOTS, 1, out, RANK, generator=generator) for out in outs)


def prepared(kind: type[PunicaWrapperCPU], ids: tuple[int, ...]) -> PunicaWrapperCPU:
    wrapper = kind(256, 64, "cpu", lora_config=SimpleNamespace())
    wrapper.update_metadata(LoRAMapping(ids, ids, is_prefill=True), [1, 2, 3, 4], SLOTS, 100)
    return wrapper


@pytest.fixture(params=["compiled", "torch"])
def inner_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler the products are torch's."""
    if request.param == "torch":
        monkeypatch.setattr(cpu_lora, "native_lora", lambda: None)
    elif native_lora() is None:
        pytest.skip("no C++ compiler is here")


@pytest.mark.usefixtures("inner_loop")
@pytest.mark.parametrize("outs", [(48,), (48, 16, 16), (50, 7)], ids=["one", "qkv", "odd widths"])
@pytest.mark.parametrize("ids", MAPPINGS.values(), ids=MAPPINGS.keys())
def test_linear_layers(ids: tuple[int, ...], outs: tuple[int, ...]) -> None:
    x = torch.randn(len(ids), WIDTH, generator=torch.Generator().manual_seed(1))
    results = []
    for kind in (PunicaWrapperCPU, GroupedPunicaWrapper):
        a, b = stacks(outs)
        y = torch.ones(len(ids), sum(outs))
        prepared(kind, ids).add_lora_linear(y, x, a, b, 1.0, outs)
        results.append(y)
    torch.testing.assert_close(results[1], expected(ids, x, outs), rtol=1e-4, atol=1e-4)
    if 0 not in ids:  # vLLM's own gives base rows the last slot's product where a batch is mixed
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


def expected(ids: tuple[int, ...], x: torch.Tensor, outs: tuple[int, ...]) -> torch.Tensor:
    a, b = stacks(outs)
    rows = []
    for row, one in zip(x, ids, strict=True):
        parts = [
            torch.zeros(out) if one == 0 else b[i][one - 1, 0] @ (a[i][one - 1, 0] @ row) for i, out in enumerate(outs)
        ]
        rows.append(1 + torch.cat(parts))
    return torch.stack(rows)


@pytest.mark.parametrize("outs", [(48,), (50, 7)], ids=["one", "odd widths"])
def test_bf16_rounds_once(outs: tuple[int, ...]) -> None:
    if native_lora() is None:
        pytest.skip("no C++ compiler is here")
    ids = MAPPINGS["a prompt beside decoding"]
    a, b = (tuple(part.bfloat16() for part in parts) for parts in stacks(outs))
    x, y = torch.randn(len(ids), WIDTH).bfloat16(), torch.randn(len(ids), sum(outs)).bfloat16()
    exact = y.float()
    for row, one in enumerate(ids):
        if one > 0:
            products = zip(a, b, strict=True)
            own = [up[one - 1, 0].float() @ (down[one - 1, 0].float() @ x[row].float()) for down, up in products]
            exact[row] += torch.cat(own)
    prepared(GroupedPunicaWrapper, ids).add_lora_linear(y, x, a, b, 1.0, outs)
    torch.testing.assert_close(y.float(), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.usefixtures("inner_loop")
def test_an_adapter_written_later_counts() -> None:
    wrapper = prepared(GroupedPunicaWrapper, (1, 2))
    a, b = stacks((48,))
    x, y = torch.ones(2, WIDTH), torch.zeros(2, 48)
    wrapper.add_lora_linear(y, x, a, b, 1.0, (48,))
    # As vLLM does it when an adapter leaves and another takes its slot.
    a[0][1] = 0
    b[0][0, 0].copy_(torch.ones(48, RANK))
    y.zero_()
    wrapper.add_lora_linear(y, x, a, b, 1.0, (48,))
    torch.testing.assert_close(y[0], torch.ones(48) * (a[0][0, 0] @ x[0]).sum(), rtol=1e-4, atol=1e-4)
    assert not y[1].any()


def test_logits() -> None:
    ids = (1, 0, 4)
    a, b = stacks((100,))
    x, y = torch.randn(3, WIDTH), torch.zeros(3, 100)
    prepared(GroupedPunicaWrapper, ids).add_lora_logits(y, x, a[0], b[0], 1.0)
    assert not y[1].any()
    for row, slot in ((0, 0), (2, 3)):
        torch.testing.assert_close(y[row], b[0][slot, 0] @ (a[0][slot, 0] @ x[row]), rtol=1e-4, atol=1e-4)


def test_logits_of_adapters_that_leave_the_output_layer_alone() -> None:
    x, y = torch.randn(3, WIDTH), torch.randn(3, 100)
    before = y.clone()
    a, b = torch.zeros(SLOTS, 1, RANK, WIDTH), torch.randn(SLOTS, 1, 100, RANK)
    prepared(GroupedPunicaWrapper, (1, 0, 4)).add_lora_logits(y, x, a, b, 1.0)
    assert torch.equal(y, before)


def test_embeddings() -> None:
    ids = (1, 0, 4)
    _, (b,) = stacks((100,))
    # Rows of A as vLLM looks them up: it has some for base rows too, of whichever slot.
    rows, y = torch.randn(3, RANK), torch.zeros(3, 100)
    prepared(GroupedPunicaWrapper, ids).add_lora_embedding(y, rows, b)
    assert not y[1].any()
    for row, slot in ((0, 0), (2, 3)):
        torch.testing.assert_close(y[row], b[slot, 0] @ rows[row], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("inner_loop")
def test_each_step_has_its_own_rows() -> None:
    wrapper = prepared(GroupedPunicaWrapper, (1, 2, 0))
    x, (a, b) = torch.randn(3, WIDTH), stacks((48,))
    y = torch.ones(3, 48)
    wrapper.add_lora_linear(y, x, a, b, 1.0, (48,))
    for ids in ((0, 4, 3), (0, 0, 0), (2, 2, 1)):
        wrapper.update_metadata(LoRAMapping(ids, ids, is_prefill=True), [1, 2, 3, 4], SLOTS, 100)
        y = torch.ones(3, 48)
        wrapper.add_lora_linear(y, x, a, b, 1.0, (48,))
        torch.testing.assert_close(y, expected(ids, x, (48,)), rtol=1e-4, atol=1e-4)
