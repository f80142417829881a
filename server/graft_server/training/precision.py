"""Mixed precision: a frozen model in bf16, and the adapter's weights, gradients and optimiser state in fp32.

The model computes with bf16 copies of the adapter's weights; the fp32 *masters* are what the optimiser changes and
what is saved (Micikevicius et al. 2018). All masters lie in two flat tensors, matrices and vectors, so that an
optimiser step is a handful of operations however many modules an adapter touches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class MasterWeights:
    """The fp32 masters of a model's trainable parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        #: Matrices, which weight decay applies to, and vectors; a group is left out if it is empty.
        groups = {
            True: [parameter for parameter in parameters if parameter.ndim >= 2],
            False: [parameter for parameter in parameters if parameter.ndim < 2],
        }
        self.flat: list[torch.nn.Parameter] = []
        #: For each flat tensor, whether weight decay applies to it.
        self.decayed: list[bool] = []
        self._shadows: list[tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor]] = []
        for decayed, group in groups.items():
            if not group:
                continue
            flat = torch.nn.Parameter(torch.cat([p.detach().float().flatten() for p in group]))
            flat.grad = torch.zeros_like(flat)
            sizes = [p.numel() for p in group]
            views, grads = torch.split(flat.detach(), sizes), torch.split(flat.grad, sizes)
            for parameter, view, grad in zip(group, views, grads, strict=True):
                if parameter.dtype == torch.float32:
                    parameter.data = view.view_as(parameter)
                    parameter.grad = grad.view_as(parameter)
                else:
                    self._shadows.append((parameter, view.view_as(parameter), grad.view_as(parameter)))
            self.flat.append(flat)
            self.decayed.append(decayed)

    def take_gradients(self) -> None:
        """Add the gradients of one backward pass to the masters' and clear them."""
        for parameter, _, grad in self._shadows:
            if parameter.grad is not None:
                grad.add_(parameter.grad)
                parameter.grad = None

    def clear_gradients(self) -> None:
        for flat in self.flat:
            assert flat.grad is not None
            flat.grad.zero_()

    def give_weights(self) -> None:
        """Round the masters into the parameters that the model computes with."""
        with torch.no_grad():
            for parameter, master, _ in self._shadows:
                parameter.copy_(master)

    @contextmanager
    def in_full(self) -> Iterator[None]:
        """Meanwhile the model's parameters *are* the masters, to be saved or loaded without rounding."""
        rounded = [parameter.data for parameter, _, _ in self._shadows]
        for parameter, master, _ in self._shadows:
            parameter.data = master
        try:
            yield
        finally:
            for (parameter, _, _), data in zip(self._shadows, rounded, strict=True):
                parameter.data = data
            self.give_weights()

    def snapshot(self) -> list[torch.Tensor]:
        """A copy of the flat masters."""
        return [flat.detach().clone() for flat in self.flat]

    def restore(self, values: list[Any]) -> None:
        """Go back to a snapshot."""
        with torch.no_grad():
            for flat, value in zip(self.flat, values, strict=True):
                flat.copy_(value)
        self.give_weights()
