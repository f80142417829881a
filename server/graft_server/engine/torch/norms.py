"""Root mean square norms (Zhang and Sennrich 2019) as one kernel instead of the five of transformers."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as functional
from torch import nn

_EPSILONS = ("variance_epsilon", "eps", "epsilon")


class Norm(Protocol):
    """``x``: ``[..., width]``; ``weight``: ``[width]``; ``epsilon`` is added to the mean square."""

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor: ...


def torch_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return functional.rms_norm(x, weight.shape, weight, epsilon)


@torch.inference_mode()
def fuse_norms(model: nn.Module, norm: Norm, tolerance: float) -> int:
    """Have every norm of the model's type that computes what ``norm`` does computed by that; how many did.

    ``tolerance`` is by how much results may differ, as a part of the largest.
    """
    fused, dtype = 0, next(model.parameters()).dtype
    for module in model.modules():
        weight = getattr(module, "weight", None)
        epsilon = next((value for name in _EPSILONS if isinstance(value := getattr(module, name, None), float)), None)
        if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, nn.Parameter) or epsilon is None:
            continue
        if weight.dtype != dtype:
            continue
        own = partial(norm, weight=weight, epsilon=epsilon)
        x = torch.linspace(-3, 5, 4 * weight.numel(), dtype=weight.dtype, device=weight.device).view(4, *weight.shape)
        expected, got = module(x).float(), own(x).float()
        if float((got - expected).abs().max()) <= tolerance * float(expected.abs().max()):
            module.forward = own
            fused += 1
    return fused
