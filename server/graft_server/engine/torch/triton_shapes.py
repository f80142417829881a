"""What products in Triton ask of shapes and types."""

from __future__ import annotations

import torch
import triton

#: The matrix units multiply by no less.
_LEAST_SIDE = 16


def padded_side(count: int) -> int:
    """A side of a product: a power of two."""
    return max(_LEAST_SIDE, int(triton.next_power_of_2(count)))


def product_precision(like: torch.Tensor) -> str:
    """Products of fp32 models are exact; tf32 has more bits than the weights of the others."""
    return "ieee" if like.dtype == torch.float32 else "tf32"
