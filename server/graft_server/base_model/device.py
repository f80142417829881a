"""Which device and precision to run on, when nobody says: one answer for serving and training."""

from __future__ import annotations

from graft_server.base_model.errors import BaseModelError


def choose_device(wanted: str) -> str:
    """``auto`` is CUDA, then MPS, then the CPU.

    Raises:
        BaseModelError: the device is not on this machine.
    """
    import torch

    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise BaseModelError(
            f"the device {wanted!r} is not on this machine; use auto, cpu, cuda, cuda:N or mps"
        ) from error
    return wanted


def choose_dtype(wanted: str, device: str) -> str:
    """``auto`` is bfloat16 where the hardware multiplies it natively, else float32; a torch dtype's name."""
    import torch

    if wanted != "auto":
        return wanted
    if device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device == "mps":
        native = True
    else:
        native = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return "bfloat16" if native else "float32"


def limit_memory(device: str, share: float | None) -> None:
    """Have this process's torch take at most this share of a CUDA device's memory; nothing to do on other devices."""
    import torch

    if share is not None and device.startswith("cuda"):
        torch.cuda.set_per_process_memory_fraction(share, torch.device(device))
