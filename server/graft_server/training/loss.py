"""Loss on the answer only: logits are computed where a token of the answer is predicted, and nowhere else.

The output layer is most of a small model's work and memory (49,152 of its columns against 576 of the hidden state
in SmolLM2-135M), and a prompt's logits are never looked at.
"""

from __future__ import annotations

from typing import Any

import torch

from graft_server.training.methods.anatomy import output_head
from graft_server.training.rows import TokenBatch

#: Logits turned to fp32 at a time; bounds the memory of the loss.
_CHUNK = 1 << 24


class AnswerLoss:
    """Cross entropy of a model on batches, summed over answer tokens.

    A hook narrows what the output layer sees to the answer's positions, so the model's own ``forward`` runs
    unchanged around it, with whatever it does to its logits and whatever adapters sit in it.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._positions: torch.Tensor | None = None
        output_head(model).register_forward_pre_hook(self._narrow)

    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        """Sum of the negative log-likelihoods of the answer tokens, in nats, in fp32."""
        self._positions = batch.positions
        try:
            logits = self._model(input_ids=batch.input_ids, use_cache=False).logits
        finally:
            self._positions = None
        return _SummedCrossEntropy.apply(logits.reshape(-1, logits.shape[-1]), batch.targets)  # type: ignore[no-any-return,no-untyped-call]

    def _narrow(self, _head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._positions is None:
            return None
        hidden = inputs[0]
        return (hidden.reshape(-1, hidden.shape[-1])[self._positions].unsqueeze(0), *inputs[1:])


class _SummedCrossEntropy(torch.autograd.Function):
    """Cross entropy in fp32 that never holds all logits in fp32: the gradient, ``softmax - onehot``, is taken chunk
    by chunk in the forward pass and kept in the logits' own type."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(logits) if wanted else None
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        rows = max(_CHUNK // logits.shape[-1], 1)
        for start in range(0, len(targets), rows):
            index = targets[start : start + rows].unsqueeze(1)
            chunk = logits[start : start + rows].float()
            normaliser = chunk.logsumexp(dim=-1, keepdim=True)
            total += (normaliser - chunk.gather(1, index)).sum()
            if gradient is not None:
                probabilities = chunk.sub_(normaliser).exp_()
                probabilities.scatter_add_(1, index, torch.full_like(index, -1, dtype=torch.float32))
                gradient[start : start + rows] = probabilities
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        # Kept between calls of backward by nobody, so it can be scaled in place.
        return gradient.mul_(upstream.to(gradient.dtype)), None
