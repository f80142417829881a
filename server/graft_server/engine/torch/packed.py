"""Linear layers in float32 on a CPU whose weights lie as oneDNN's products read them.

By themselves torch's products in float32 are MKL's, which lays the weights out anew for each product. On an AVX2
machine two to four rows took two to three times as long as they have to, and so did any number of them through the
output layer. From about a hundred rows on the two are equal, as the layout is a small part of the work there.

oneDNN generates a program for each number of rows, which takes a millisecond and half a MiB, and keeps up to a
thousand of them. So there are products of a few numbers of rows only.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as functional
from torch import nn

#: Bytes of packed weights at most. They lie beside the plain ones, which the embedding and DoRA read.
_BUDGET = 2 << 30
#: Rows of a product at most for which the packed weights are used.
_ROWS = 64
#: Up to so many rows each number has a program of its own; above, multiples of it have.
_EXACT = 8


def pack_linears(modules: Iterable[nn.Module], *, budget: int = _BUDGET) -> int:
    """Have linear modules compute with packed weights, the first ones until ``budget`` bytes are used; none where that
    is of no use. Returns how many bytes the packed weights have."""
    used = 0
    for module in modules:
        if type(module) is not nn.Linear or not _is_of_use(module.weight) or used + module.weight.nbytes > budget:
            continue
        packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), _ROWS)
        # On the instance: hooks see the module as it was.
        setattr(module, "forward", partial(_product, packed, module.weight, module.bias))  # noqa: B010 - mypy knows it as a method
        used += module.weight.nbytes
    return used


def _is_of_use(weight: torch.Tensor) -> bool:
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return plain and platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def _product(packed: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """``x``: ``[..., in]``; gives ``[..., out]``. ``packed`` and ``weight``, ``[out, in]``, are the same weights."""
    flat = x.reshape(-1, x.shape[-1])
    rows = len(flat)
    if rows > _ROWS:
        return functional.linear(x, weight, bias)
    missing = -rows % _EXACT if rows > _EXACT else 0
    if missing:
        flat = functional.pad(flat, (0, 0, 0, missing))
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(flat, packed, bias, "none", [], "")
    return result[:rows].view(*x.shape[:-1], len(weight))
