"""What a CUDA graph is, without CUDA: the operations of a computation, recorded with the tensors they ran on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from graft_server.engine.torch.indexed import GatheredProducts
from graft_server.engine.torch.runner import ModelRunner
from support.gathered_attention import gathered_attention


class RecordedOperations:
    """Runs the recorded operations again, and none of the Python that led to them. Like a CUDA graph it can't be made
    of a computation that looks at a tensor's values."""

    def __init__(self, compute: Callable[[], torch.Tensor]) -> None:
        self._operations = make_fx(compute)()
        self.result = self._operations()

    def replay(self) -> None:
        self.result.copy_(self._operations())


def record_operations(compute: Callable[[], torch.Tensor]) -> tuple[RecordedOperations, torch.Tensor]:
    recorded = RecordedOperations(compute)
    return recorded, recorded.result


def replay_operations(runner: ModelRunner) -> None:
    """Have a runner record and replay its steps so. Norms are the model's own again: what C++ computes is no torch
    operation."""
    for module in runner.model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            vars(module).pop("forward", None)
    runner.replay_steps(record_operations, GatheredProducts(), gathered_attention)
