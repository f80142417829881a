"""Attention of rows by themselves on CPUs, in C++: keys and values are read where they lie in the cache."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

from graft_server.engine.native.library import native_function


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "keys", "values", "table", "lengths", "output")),
        *((name, ctypes.c_int64) for name in ("query_row", "query_head")),
        *(
            (name, ctypes.c_int32)
            for name in ("rows", "kv_heads", "fold", "head_dim", "value_dim", "block_size", "table_width", "window")
        ),
        ("scale", ctypes.c_float),
    )


class NativeAttention:
    """See ``attention.LoneAttention``; numbers are all float32 or all bfloat16, sums float32."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        blocks: torch.Tensor,
        lengths: torch.Tensor,
        *,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        query = query if query.stride(2) == 1 else query.contiguous()
        rows, heads, head_dim = query.shape
        block_size, kv_heads, value_dim = values.shape[1:]
        output = query.new_empty(rows, heads, value_dim)
        sizes = (rows, kv_heads, heads // kv_heads, head_dim, value_dim, block_size, blocks.shape[1])
        attention = _Attention(
            *(tensor.data_ptr() for tensor in (query, keys, values, blocks, lengths, output)),
            query.stride(0),
            query.stride(1),
            *sizes,
            2**31 - 1 if window is None else window,
            scale,
        )
        self._function(attention, torch.get_num_threads())
        return output


def native_attention(dtype: torch.dtype) -> NativeAttention | None:
    """For numbers of that type; ``None`` where it can't be compiled here, or the type is another one."""
    function = native_function("attend", dtype, (ctypes.POINTER(_Attention), ctypes.c_int))
    return None if function is None else NativeAttention(function)
