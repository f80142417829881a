"""The compiled attention of rows by themselves gives what torch's operations give."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.torch

BLOCKS = 40


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=9),
    kv_heads=st.integers(1, 3),
    fold=st.integers(1, 9),
    head_dim=st.sampled_from([5, 16, 40, 64]),
    value_dim=st.sampled_from([5, 16, 40, 64]),
    window=st.sampled_from([None, 1, 20, 130]),
    block_size=st.sampled_from([4, 16]),
    kind=st.sampled_from(["float32", "bfloat16"]),
    packed=st.booleans(),
    peak=st.sampled_from([1.0, 60.0]),
    seed=st.integers(0, 100),
)
# Scores so far apart that what the softmax gives most places is nothing.
@example([150, 3], 2, 3, 64, 64, None, 16, "float32", True, 60.0, 0)
def test_rows_equal_those_of_torch(
    lengths: list[int],
    kv_heads: int,
    fold: int,
    head_dim: int,
    value_dim: int,
    window: int | None,
    block_size: int,
    kind: str,
    packed: bool,
    peak: float,
    seed: int,
) -> None:
    import torch

    from graft_server.engine.native.attention import native_attention
    from support.gathered_attention import gathered_attention

    dtype = getattr(torch, kind)
    attention = native_attention(dtype)
    if attention is None:
        pytest.skip("no C++ compiler is here")
    random = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    rows, width = len(lengths), -(-max(lengths) // block_size)
    query = tensor(rows, kv_heads * fold, head_dim) * peak
    keys, values = tensor(BLOCKS, block_size, kv_heads, head_dim), tensor(BLOCKS, block_size, kv_heads, value_dim)
    blocks = torch.randint(0, BLOCKS, (rows, width), generator=random, dtype=torch.int32)
    seen = torch.tensor(lengths, dtype=torch.int32)
    expected = gathered_attention(
        query.float(), keys.float(), values.float(), blocks, seen, scale=head_dim**-0.5, window=window
    )
    # As it comes from the model: the heads' rows behind one another.
    asked = query if packed else query.transpose(0, 1).contiguous().transpose(0, 1)
    got = attention(asked, keys, values, blocks, seen, scale=head_dim**-0.5, window=window)
    # Large scores are known less exactly.
    tolerance = 1e-5 * peak if kind == "float32" else 2e-2
    torch.testing.assert_close(got.float(), expected, rtol=tolerance, atol=tolerance)


def test_other_numbers_are_left_to_torch() -> None:
    import torch

    from graft_server.engine.native.attention import native_attention

    assert native_attention(torch.float16) is None


def test_a_key_that_is_no_number_makes_its_rows_none() -> None:
    import torch

    from graft_server.engine.native.attention import native_attention

    attention = native_attention(torch.float32)
    if attention is None:
        pytest.skip("no C++ compiler is here")
    keys, values = torch.randn(4, 16, 1, 16), torch.randn(4, 16, 1, 16)
    keys[1, 3] = torch.nan
    blocks, lengths = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32), torch.tensor([25, 25], dtype=torch.int32)
    got = attention(torch.randn(2, 1, 16), keys, values, blocks, lengths, scale=0.25, window=None)
    assert got[0].isnan().all()
    assert got[1].isfinite().all()
