"""The compiled norm gives what transformers' five operations give."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.torch


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 60), st.sampled_from(["float32", "bfloat16"]), st.integers(0, 100))
def test_it_equals_llamas(rows: int, width: int, kind: str, seed: int) -> None:
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from graft_server.engine.native.norm import native_norm

    dtype = getattr(torch, kind)
    norm = native_norm(dtype)
    if norm is None:
        pytest.skip("no C++ compiler is here")
    random = torch.Generator().manual_seed(seed)
    theirs = LlamaRMSNorm(width, eps=1e-5).to(dtype)
    theirs.weight.data.copy_(torch.randn(width, generator=random))
    # Not contiguous: every other row of a tensor.
    x = torch.randn(1, 2 * rows, width, generator=random).to(dtype)[:, ::2]
    tolerance = {"float32": 1e-5, "bfloat16": 1e-2}[kind]
    torch.testing.assert_close(norm(x, theirs.weight, 1e-5), theirs(x), rtol=tolerance, atol=tolerance)


def test_many_rows_are_divided_among_threads() -> None:
    import torch

    from graft_server.engine.native.norm import native_norm

    norm = native_norm(torch.float32)
    if norm is None:
        pytest.skip("no C++ compiler is here")
    x, weight = torch.randn(100, 576), torch.randn(576)
    torch.testing.assert_close(norm(x, weight, 1e-6), torch.nn.functional.rms_norm(x, (576,), weight, 1e-6))
