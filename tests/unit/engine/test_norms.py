"""Norms that a kernel computes as the model does are left to it, others are not touched."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.torch


def test_llamas_norm_is_fused_and_gives_the_same() -> None:
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from graft_server.engine.torch.norms import fuse_norms, torch_norm

    norm = LlamaRMSNorm(24, eps=1e-5)
    norm.weight.data.uniform_(0.5, 2)
    x = torch.randn(2, 3, 24)
    expected = norm(x)
    assert fuse_norms(torch.nn.Sequential(norm), torch_norm, 1e-5) == 1
    assert "forward" in vars(norm)
    assert torch.allclose(norm(x), expected, atol=1e-6)


def test_a_norm_of_another_kind_stays_as_it_is() -> None:
    import torch
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    from graft_server.engine.torch.norms import fuse_norms, torch_norm

    norm = GemmaRMSNorm(24)
    norm.weight.data.uniform_(0.5, 2)
    x = torch.randn(2, 3, 24)
    expected = norm(x)
    assert fuse_norms(torch.nn.Sequential(norm, torch.nn.LayerNorm(24)), torch_norm, 1e-5) == 0
    assert torch.equal(norm(x), expected)
