"""Linear modules that read the same input, such as q, k and v, computed as one: fewer and larger products, of the base
model and of its adapters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

#: Linear modules of one kind can be one: the width of their input, the type and device of their numbers, and whether
#: they have a bias.
Kind = tuple[int, torch.dtype, torch.device, bool]


def kind_of(module: nn.Linear) -> Kind | None:
    """``None`` for a module that computes something of its own."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return None
    return (module.in_features, module.weight.dtype, module.weight.device, module.bias is not None)


def join_linears(modules: Sequence[nn.Linear]) -> nn.Linear:
    """One linear module for those of one kind that are called in this order with the same input. Each of them computes
    by it from now on, and its weight is a part of the joint one."""
    first, sizes = modules[0], [module.out_features for module in modules]
    joint = nn.Linear(first.in_features, sum(sizes), bias=first.bias is not None, device="meta")
    for name in ("weight", "bias") if first.bias is not None else ("weight",):
        parts: list[nn.Parameter] = [getattr(module, name) for module in modules]
        with torch.inference_mode(mode=False):  # a weight like those that were loaded, wherever this is called
            whole = torch.cat([part.detach() for part in parts])
        setattr(joint, name, nn.Parameter(whole, requires_grad=False))
        for part, own in zip(parts, torch.split(whole, sizes), strict=True):
            part.data = own
    columns = _Columns(joint, sizes)
    for index, module in enumerate(modules):
        # On the instance: the module stays where it is, with its name and its weight.
        setattr(module, "forward", partial(columns.of, index))  # noqa: B010 - mypy knows it as a method
    return joint


class _Columns:
    """What a joint module computes of an input, until each of its modules has taken its columns."""

    def __init__(self, joint: nn.Linear, sizes: list[int]) -> None:
        self._joint = joint
        self._sizes = sizes
        self._input: torch.Tensor | None = None
        #: By the place of their module, those that have not been taken.
        self._parts: dict[int, torch.Tensor] = {}

    def of(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """``x``: ``[..., in]``; gives ``[..., out]`` of one module, a view."""
        if index == 0 or self._input is not x or index not in self._parts:
            self._input, self._parts = x, dict(enumerate(torch.split(self._joint(x), self._sizes, dim=-1)))
        part = self._parts.pop(index)
        if index == len(self._sizes) - 1:
            self._input, self._parts = None, {}
        return part
