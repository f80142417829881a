"""The non-linearities of adapters, one table for training and serving."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as functional

from graft_plugins.method import Activation

ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda x: x,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
