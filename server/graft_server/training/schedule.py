"""The learning rate as a function of the step: linear warm-up, then linear, cosine or constant."""

from __future__ import annotations

import math

from graft_server.training.options import TrainingOptions


def learning_rate(step: int, total_steps: int, options: TrainingOptions) -> float:
    """The rate of optimiser step ``step``, counted from 0. The first step of a warm-up is not wasted on 0."""
    warmup = round(total_steps * options.warmup_ratio)
    if step < warmup:
        return options.learning_rate * (step + 1) / (warmup + 1)
    if options.schedule == "constant":
        return options.learning_rate
    done = (step - warmup) / max(total_steps - warmup, 1)
    if options.schedule == "cosine":
        return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return options.learning_rate * (1 - done)
