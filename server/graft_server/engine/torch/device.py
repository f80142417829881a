"""Which device and precision to run on, when nobody says."""

from __future__ import annotations

import torch

from graft_server.engine.base import EngineUnavailableError


def choose_device(wanted: str) -> str:
    """``auto`` is CUDA, then MPS, then the CPU.

    Raises:
        EngineUnavailableError: the device is not there.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = wanted.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in there:
        raise EngineUnavailableError(f"unknown device {wanted!r}; use auto, cpu, cuda, cuda:N or mps")
    if not there[kind]:
        raise EngineUnavailableError(f"device {wanted!r} is not available on this machine; use --device auto")
    return wanted


def choose_dtype(wanted: str, device: str) -> str:
    """``auto`` is bfloat16 where the hardware multiplies it natively, else float32."""
    if wanted != "auto":
        return wanted
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if device == "mps":
        return "bfloat16"
    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
