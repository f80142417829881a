"""The options of a training job: one flat namespace for ``--set``, checked before a job is queued.

Options come from three places, the weakest first: the defaults here and in the method, the task's training
defaults, and what the caller gave. No torch is imported here: the server and the client's errors need this too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graft_plugins.errors import nearest_name
from graft_plugins.method import AdapterMethod
from graft_plugins.task import AnyTask


class TrainingOptions(BaseModel):
    """What every method takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(1e-3, gt=0, le=10, description="Peak learning rate.")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="Optimiser; sgd has momentum 0.9.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Course of the learning rate after warm-up; linear and cosine end at 0."
    )
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="Share of the steps that warm up linearly.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Weight decay of matrices; biases have none.")
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the gradient's norm to this; 0 does not clip.")
    epochs: int = Field(1, ge=1, le=1000, description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Optimiser steps, instead of epochs.")
    batch_size: int = Field(16, ge=1, le=4096, description="Rows of one forward pass.")
    gradient_accumulation: int = Field(1, ge=1, le=1024, description="Forward passes of one optimiser step.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="Arithmetic of the frozen model; adapter weights are kept in fp32 either way."
    )
    max_length: int = Field(1024, ge=8, description="Longer rows, in tokens of prompt and answer, are left out.")
    eval_rows: int = Field(64, ge=1, description="Rows held out for the final evaluation; at most a fifth.")
    validation_rows: int = Field(32, ge=0, description="Rows held out to watch the loss; at most a tenth.")
    eval_every: int = Field(50, ge=1, description="Steps between two looks at the validation loss.")
    early_stopping_patience: int = Field(
        0, ge=0, description="Stop after this many looks without a better loss, and keep the best; 0 is off."
    )
    checkpoint_every: int = Field(50, ge=1, description="Steps between two checkpoints.")
    publish_checkpoints: bool = Field(
        False, description="Publish each checkpoint at once, as a version of NAME-checkpoints."
    )
    validation_dataset: str | None = Field(
        None, description="Id of a dataset to watch the loss on, instead of rows held out from the training data."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of split, order, initial weights and dropout.")

    def test_rows(self, examples: int) -> int:
        """How many of so many examples are held out for the final evaluation."""
        return min(self.eval_rows, max(examples // 5, 1))

    def watched_rows(self, examples: int) -> int:
        """How many of so many training examples are held out to watch the loss."""
        return min(self.validation_rows, examples // 10)


class OptionError(ValueError):
    """An option that does not exist or has no usable value. ``code`` is stable: ``unknown-option`` or
    ``invalid-option``."""

    def __init__(self, code: str, name: str, message: str, nearest: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.name = name
        self.nearest = nearest


@dataclass(frozen=True, slots=True)
class ResolvedOptions:
    """Every option in force: for training, for the method, and both as one flat JSON object."""

    training: TrainingOptions
    method_options: BaseModel
    flat: dict[str, Any]


def resolve_options(task: AnyTask, method: AdapterMethod, given: Mapping[str, Any]) -> ResolvedOptions:
    """Defaults, then the task's training defaults, then ``given``. Values may be strings of a command line.

    A task's default for an option of another method is passed over.

    Raises:
        OptionError: an unknown option, with the nearest one that exists, or a value that does not fit, alone or beside
            the others.
    """
    training_names = set(TrainingOptions.model_fields)
    method_names = set(method.options_model.model_fields)
    known = training_names | method_names
    for name in given:
        if name not in known:
            raise _unknown(name, method, known)
    values = {name: value for name, value in task.training_defaults.items() if name in known} | dict(given)
    training = _validate(TrainingOptions, values, training_names)
    _check_early_stopping(training)
    method_options = _validate(method.options_model, values, method_names - training_names)
    flat = training.model_dump(mode="json") | method_options.model_dump(mode="json")
    return ResolvedOptions(training, method_options, flat)


def _check_early_stopping(training: TrainingOptions) -> None:
    if training.early_stopping_patience and not training.validation_rows and training.validation_dataset is None:
        raise OptionError(
            "invalid-option",
            "early_stopping_patience",
            f"option 'early_stopping_patience' can't be {training.early_stopping_patience} with validation_rows=0: "
            "there is no loss to stop by; set validation_rows or validation_dataset",
        )


def _unknown(name: str, method: AdapterMethod, known: Iterable[str]) -> OptionError:
    nearest = nearest_name(name, known)
    hint = f"did you mean {nearest!r}?" if nearest else f"there are {', '.join(sorted(known))}"
    return OptionError("unknown-option", name, f"unknown option {name!r} of method {method.name!r}; {hint}", nearest)


def _validate(model: type[BaseModel], values: Mapping[str, Any], names: Iterable[str]) -> Any:
    chosen = {name: _from_text(values[name]) for name in names if name in values}
    try:
        return model.model_validate(chosen)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else model.__name__
        message = first["msg"].removeprefix("Value error, ")
        raise OptionError(
            "invalid-option", name, f"option {name!r} can't be {values.get(name)!r}: {message}"
        ) from error


def _from_text(value: Any) -> Any:
    """``none`` as a command line writes it; everything else pydantic reads from strings by itself."""
    return None if isinstance(value, str) and value.strip().lower() in ("none", "null") else value
