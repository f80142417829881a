"""Root mean square norms on CPUs, in C++: one pass over a row instead of the five operations of transformers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

from graft_server.engine.native.library import native_function


class NativeNorm:
    """``x / sqrt(mean(x^2) + epsilon) * weight`` over the last dimension (Zhang and Sennrich 2019).

    ``x``: ``[..., width]``, of the type of ``weight``, ``[width]``, which is contiguous.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        x = x.contiguous()
        result = torch.empty_like(x)
        width = weight.numel()
        self._function(
            x.data_ptr(),
            weight.data_ptr(),
            result.data_ptr(),
            x.numel() // width,
            width,
            epsilon,
            torch.get_num_threads(),
        )
        return result


def native_norm(dtype: torch.dtype) -> NativeNorm | None:
    """For numbers of that type; ``None`` where it can't be compiled here, or the type is another one."""
    arguments = (*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 2, ctypes.c_float, ctypes.c_int)
    function = native_function("normalize", dtype, arguments)
    return None if function is None else NativeNorm(function)
