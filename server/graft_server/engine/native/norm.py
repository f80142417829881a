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

    def __init__(self, function: Callable[..., None], dtype: torch.dtype) -> None:
        self._function = function
        self._dtype = dtype

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """
        Raises:
            TypeError: the numbers are of another type, or a row is not as long as the weight.
        """
        width = weight.numel()
        if x.dtype != self._dtype or weight.dtype != self._dtype or x.shape[-1] != width:
            raise TypeError(
                f"a norm of {self._dtype} was given {x.dtype} {tuple(x.shape)}, and {weight.dtype} as weight"
            )
        x = x.contiguous()
        result = torch.empty_like(x)
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
    return None if function is None else NativeNorm(function, dtype)
