"""The compiled norm gives what transformers' five operations give."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.torch


@settings(max_examples=50, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 5, 600]),
    width=st.integers(1, 60),
    kind=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(0, 100),
)
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


def test_numbers_of_another_type_are_refused() -> None:
    import torch

    from graft_server.engine.native.norm import native_norm

    norm = native_norm(torch.float32)
    if norm is None:
        pytest.skip("no C++ compiler is here")
    for x, weight in (
        (torch.ones(2, 8, dtype=torch.bfloat16), torch.ones(8)),
        (torch.ones(2, 8), torch.ones(8, dtype=torch.bfloat16)),
        (torch.ones(2, 9), torch.ones(8)),
    ):
        with pytest.raises(TypeError, match=r"a norm of torch.float32 was given"):
            norm(x, weight, 1e-5)
