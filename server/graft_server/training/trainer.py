"""The training loop: steps, validation, early stopping, checkpoints and live figures.

Nothing here knows tasks, jobs or the registry: it trains an attached model on tokenised rows.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graft_client.schemas.jobs import JobProgress
from graft_plugins.method import AdapterMethod
from graft_server.training.batches import BatchPlan
from graft_server.training.checkpoint import RunState, read_checkpoint, restore_rng, write_checkpoint
from graft_server.training.fused import speed_up
from graft_server.training.loss import AnswerLoss
from graft_server.training.options import TrainingOptions
from graft_server.training.precision import MasterWeights
from graft_server.training.rows import TokenBatch, TokenRow, collate
from graft_server.training.schedule import learning_rate

#: Steps over which the shown loss and speed are averaged.
_SMOOTHING = 20
#: Losses go up and down by rounding; a validation loss must fall by more than this to be better.
_BETTER = 1e-4


class TrainingError(Exception):
    """Training can't go on. The text is one sentence with what to change."""


class Stopped(Exception):  # noqa: N818 - not an error: someone asked for it
    """The run was asked to stop and has written a checkpoint."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the loop tells and asks the outside."""

    progress: Callable[[JobProgress], None] = lambda progress: None
    checkpoint: Callable[[int], None] = lambda step: None
    should_stop: Callable[[], bool] = lambda: False


class Trainer:
    """Trains ``model``, which ``method.attach`` returned, on ``train`` rows.

    ``checkpoints`` is the folder of checkpoints: a run goes on from the newest one there. ``None`` keeps none.
    """

    def __init__(
        self,
        model: Any,
        method: AdapterMethod,
        train: Sequence[TokenRow],
        validation: Sequence[TokenRow],
        options: TrainingOptions,
        *,
        checkpoints: Path | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self._model = model
        self._method = method
        self._train = train
        self._validation = validation
        self._options = options
        self._checkpoints = checkpoints
        self._hooks = hooks or Hooks()
        self._device = next(model.parameters()).device
        speed_up(model)
        self._loss = AnswerLoss(model)
        self._masters = MasterWeights(model)
        self._optimizer = _optimizer(self._masters, options)
        self._plan = BatchPlan(
            [len(row.ids) for row in train],
            batch_size=options.batch_size,
            accumulation=options.gradient_accumulation,
            seed=options.seed,
        )
        self.total_steps = options.max_steps or options.epochs * self._plan.steps_per_epoch
        self._state = RunState()
        self._best: list[torch.Tensor] = []
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=_SMOOTHING)

    def run(self) -> RunState:
        """Train to the end and leave the result in the model.

        Raises:
            Stopped: ``should_stop`` said so; a checkpoint was written.
            TrainingError: the loss is not finite, or memory ran out.
        """
        torch.manual_seed(self._options.seed)
        self._resume()
        self._model.train()
        with self._clear_errors():
            self._loop()
            if self._best:
                self._masters.restore(self._best)
                self._state.eval_loss = self._state.best_eval_loss
        return self._state

    def save(self, folder: str) -> None:
        """Write the adapter's files, unrounded."""
        with self._masters.in_full():
            self._method.save(self._model, folder)

    # The loop

    def _loop(self) -> None:
        state, options = self._state, self._options
        while state.step < self.total_steps and not state.stopped_early:
            if self._hooks.should_stop():
                self._checkpoint()
                raise Stopped
            started = time.monotonic()
            loss, tokens = self._step(state.step)
            state.step += 1
            state.tokens += tokens
            self._recent.append((time.monotonic() - started, tokens, loss))
            state.loss = sum(entry[2] for entry in self._recent) / len(self._recent)
            last = state.step == self.total_steps
            if self._validation and (state.step % options.eval_every == 0 or last):
                self._look()
            state.seconds += time.monotonic() - started
            self._report()
            if state.step % options.checkpoint_every == 0 and not last:
                self._checkpoint()

    def _step(self, number: int) -> tuple[float, int]:
        """One optimiser step; its loss in nats per answer token, and its tokens."""
        batches = [self._batch(self._train, indices) for indices in self._plan.step(number)]
        # Every answer token of a step weighs the same, however it was cut into batches.
        answer_tokens = sum(len(batch.targets) for batch in batches)
        summed = 0.0
        for batch in batches:
            loss = self._loss(batch)
            (loss / answer_tokens).backward()  # type: ignore[no-untyped-call]
            self._masters.take_gradients()
            summed += loss.item()
        mean = summed / answer_tokens
        norm = self._clip()
        if not math.isfinite(mean) or not math.isfinite(norm):
            raise TrainingError(
                f"the loss is no longer finite (step {number + 1}: loss {mean}, gradient norm {norm}); "
                f"lower learning_rate, which is {self._options.learning_rate:g}, or set precision=fp32"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(number, self.total_steps, self._options)
        self._optimizer.step()
        self._masters.clear_gradients()
        self._masters.give_weights()
        return mean, sum(batch.tokens for batch in batches)

    def _clip(self) -> float:
        """Clip the gradient by its norm; the norm before that."""
        gradients = [flat.grad for flat in self._masters.flat if flat.grad is not None]
        norm = math.hypot(*(float(torch.linalg.vector_norm(gradient)) for gradient in gradients))
        limit = self._options.max_grad_norm
        if limit and norm > limit:
            for gradient in gradients:
                gradient.mul_(limit / norm)
        return norm

    def _look(self) -> None:
        """Take the validation loss, and stop early where it has not become better for long enough."""
        state, patience = self._state, self._options.early_stopping_patience
        state.eval_loss = self.validation_loss()
        best = state.best_eval_loss
        if best is None or state.eval_loss < best - _BETTER:
            state.best_eval_loss = state.eval_loss
            state.looks_without_better = 0
            if patience:
                self._best = self._masters.snapshot()
        else:
            state.looks_without_better += 1
            state.stopped_early = bool(patience) and state.looks_without_better >= patience

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean loss over the answer tokens of the validation rows, in nats."""
        self._model.eval()
        order = sorted(range(len(self._validation)), key=lambda index: len(self._validation[index].ids))
        size = self._options.batch_size
        summed, tokens = 0.0, 0
        for start in range(0, len(order), size):
            batch = self._batch(self._validation, order[start : start + size])
            summed += self._loss(batch).item()
            tokens += len(batch.targets)
        self._model.train()
        return summed / tokens

    def _batch(self, rows: Sequence[TokenRow], indices: Sequence[int]) -> TokenBatch:
        return collate([rows[index] for index in indices], self._device)

    # Checkpoints

    def _checkpoint(self) -> None:
        if self._checkpoints is None:
            return
        write_checkpoint(self._checkpoints, self._state, self._optimizer, self._best, self.save)
        self._hooks.checkpoint(self._state.step)

    def _resume(self) -> None:
        checkpoint = read_checkpoint(self._checkpoints) if self._checkpoints is not None else None
        if checkpoint is None:
            return
        with self._masters.in_full():
            self._method.load_state(self._model, str(checkpoint.folder))
        self._optimizer.load_state_dict(checkpoint.optimizer)
        self._best = [value.to(self._device) for value in checkpoint.best]
        self._state = checkpoint.state
        restore_rng(checkpoint.rng)

    # Figures

    def _report(self) -> None:
        state = self._state
        seconds = sum(entry[0] for entry in self._recent)
        remaining = 0 if state.stopped_early else self.total_steps - state.step
        self._hooks.progress(
            JobProgress(
                phase="training",
                step=state.step,
                total_steps=self.total_steps,
                epoch=state.step / self._plan.steps_per_epoch,
                loss=state.loss,
                eval_loss=state.eval_loss,
                tokens=state.tokens,
                tokens_per_second=sum(entry[1] for entry in self._recent) / seconds,
                eta_seconds=remaining * state.seconds / state.step,
            )
        )

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            text = str(error).lower()
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in text:
                raise TrainingError(
                    f"out of memory on {self._device} with batch_size {self._options.batch_size}: set a smaller "
                    "batch_size with more gradient_accumulation, or a smaller max_length"
                ) from error
            raise


def _optimizer(masters: MasterWeights, options: TrainingOptions) -> torch.optim.Optimizer:
    groups = [
        {"params": [flat], "weight_decay": options.weight_decay if decayed else 0.0}
        for flat, decayed in zip(masters.flat, masters.decayed, strict=True)
    ]
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9, fused=True)
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=options.learning_rate, fused=True)
