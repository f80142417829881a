"""The C++ inner loop of LoRA on CPUs, for both engines: called once a layer.

Where it can't be compiled, they compute with torch's products.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from graft_server.engine.native.library import native_function

#: Rows that one thread takes at a time.
_BLOCK_ROWS = 8


class _Step(ctypes.Structure):
    _fields_ = (("rows", ctypes.c_void_p), ("blocks", ctypes.c_void_p), ("count", ctypes.c_int32))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("down", ctypes.c_void_p),
        ("up", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        ("slices", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("down_stride", ctypes.c_int32),
        ("up_stride", ctypes.c_int32),
    )


class NativeStep:
    """A step's rows with adapters, those of a slot together (``rows``, int32), and how they are taken: ``blocks``
    (``[blocks, 3]``, int32) are slots, the place of a block's first row in ``rows``, and how many rows it has."""

    def __init__(self, rows: torch.Tensor, blocks: torch.Tensor) -> None:
        self.rows = rows
        self.blocks = blocks
        self.struct = _Step(rows.data_ptr(), blocks.data_ptr(), len(blocks))


class NativeLayer:
    """``down``: ``[slots, in, slices * R]``; ``up``: ``[slots, R, out]``, of the same type; both all or some columns of
    a contiguous tensor. ``ends``: where the slices of the output begin, and where the last one ends."""

    def __init__(self, down: torch.Tensor, up: torch.Tensor, ends: Sequence[int]) -> None:
        self._kept = (down, up, torch.tensor(ends, dtype=torch.int32))
        addresses = [tensor.data_ptr() for tensor in self._kept]
        self.struct = _Layer(*addresses, len(ends) - 1, up.shape[1], down.shape[1], down.stride(1), up.stride(1))


def sort_rows(slots: torch.Tensor) -> NativeStep:
    """Sort rows by their slots (``[T]``, -1 for the base model, which is left out)."""
    numbers = slots.numpy()
    order = np.argsort(numbers, kind="stable")
    order = order[np.searchsorted(numbers[order], 0) :]
    found, firsts, counts = np.unique(numbers[order], return_index=True, return_counts=True)
    blocks = [
        (slot, first + at, min(_BLOCK_ROWS, count - at))
        for slot, first, count in zip(found.tolist(), firsts.tolist(), counts.tolist(), strict=True)
        for at in range(0, count, _BLOCK_ROWS)
    ]
    return NativeStep(
        torch.from_numpy(order.astype(np.int32)), torch.tensor(blocks, dtype=torch.int32).view(len(blocks), 3)
    )


class NativeLora:
    """The compiled functions, one a type of numbers."""

    def __init__(self, functions: Mapping[torch.dtype, Callable[..., None]]) -> None:
        self._functions = functions

    def serves(self, *tensors: torch.Tensor) -> bool:
        """Whether they are of one type that it knows, each row of them side by side in memory."""
        dtype = tensors[0].dtype
        return dtype in self._functions and all(each.dtype == dtype and each.stride(-1) == 1 for each in tensors)

    def add(self, y: torch.Tensor, x: torch.Tensor, layer: NativeLayer, step: NativeStep, scale: float) -> None:
        """``y[row] += scale * (x[row] @ down[slot]) @ up[slot]``, slice by slice; sums are float32.

        ``y``: ``[T, out]``; ``x``: ``[T, in]``; of the layer's type, their last dimensions contiguous.
        """
        threads = torch.get_num_threads()
        self._functions[y.dtype](
            y.data_ptr(), y.stride(0), x.data_ptr(), x.stride(0), layer.struct, step.struct, scale, threads
        )


def native_lora() -> NativeLora | None:
    """The compiled functions; ``None`` where they can't be compiled here."""
    array = (ctypes.c_void_p, ctypes.c_int64)
    arguments = (*array, *array, ctypes.POINTER(_Layer), ctypes.POINTER(_Step), ctypes.c_float, ctypes.c_int)
    functions: dict[torch.dtype, Callable[..., None]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        function = native_function("add_lora", dtype, arguments)
        if function is None:
            return None
        functions[dtype] = function
    return NativeLora(functions)
