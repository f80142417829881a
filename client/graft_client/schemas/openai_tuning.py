"""The OpenAI-shaped fine-tuning jobs.

Field names follow OpenAI's public API reference; ``task``, ``options`` and the name of a method in ``method`` are ours.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from graft_client.schemas.common import RequestSchema, Schema
from graft_client.schemas.openai_files import Metadata

#: ``auto`` says the same as to leave it out.
_OrAuto = BeforeValidator(lambda value: None if value == "auto" else value)


class Hyperparameters(RequestSchema):
    """What is left out, or ``auto``, is what the task trains with if nobody says otherwise."""

    n_epochs: Annotated[int | None, _OrAuto] = Field(None, ge=1, le=1000, description="Passes over the training rows.")
    batch_size: Annotated[int | None, _OrAuto] = Field(None, ge=1, le=4096, description="Rows of one forward pass.")
    learning_rate_multiplier: Annotated[float | None, _OrAuto] = Field(
        None, gt=0, description="A factor of the task's learning rate."
    )


class SupervisedMethod(RequestSchema):
    hyperparameters: Hyperparameters = Hyperparameters()


class TuningMethod(RequestSchema):
    """OpenAI's way to say how: by example is the one that there is here."""

    type: Literal["supervised"]
    supervised: SupervisedMethod = SupervisedMethod()


class FineTuningCreate(RequestSchema):
    """A fine-tuning job to run."""

    model: str = Field(description="The base model.")
    training_file: str = Field(description="A file uploaded for `fine-tune`.")
    validation_file: str | None = Field(None, description="Rows to watch the loss on, instead of some held out.")
    suffix: str | None = Field(None, min_length=1, max_length=64, description="The adapter's name.")
    seed: int | None = Field(None, ge=0, lt=2**31)
    hyperparameters: Hyperparameters | None = None
    method: TuningMethod | str | None = Field(None, description="OpenAI's object, or an adapter method by its name.")
    metadata: Metadata | None = None
    integrations: list[dict[str, Any]] | None = Field(None, max_length=0, description="None are served.")
    task: str = Field("chat", description="What the rows are examples of.")
    options: dict[str, Any] = Field({}, description="Training and method options, as for `--set`.")

    @property
    def method_name(self) -> str:
        return self.method if isinstance(self.method, str) else "lora"

    @property
    def asked(self) -> Hyperparameters:
        """The hyperparameters, from whichever of their two places they stand in."""
        if isinstance(self.method, TuningMethod) and "supervised" in self.method.model_fields_set:
            return self.method.supervised.hyperparameters
        return self.hyperparameters or Hyperparameters()


class FineTuningError(Schema):
    code: str
    message: str
    param: str | None = None


class HyperparametersInForce(Schema):
    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float


class MethodInForce(Schema):
    type: Literal["supervised"] = "supervised"
    supervised: dict[str, HyperparametersInForce]
    name: str = Field(description="The adapter method.")


class FineTuningJob(Schema):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: FineTuningError | None = None
    fine_tuned_model: str | None = Field(None, description="`name@N`, a `model` to call, once the job has succeeded.")
    finished_at: int | None = None
    hyperparameters: HyperparametersInForce
    method: MethodInForce
    model: str
    organization_id: str = "graftwork"
    result_files: list[str] = Field([], description="The losses of its steps as CSV, once the job has succeeded.")
    seed: int
    status: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
    trained_tokens: int | None = None
    training_file: str
    validation_file: str | None = None
    estimated_finish: int | None = None
    integrations: list[dict[str, Any]] = []
    metadata: Metadata | None = None
    suffix: str | None = None
    task: str
    options: dict[str, Any] = Field(description="Every training and method option in force.")


class FineTuningEvent(Schema):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"] = "info"
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] = Field({}, description="Of `metrics`: step, total_steps, epoch, train_loss and valid_loss.")


class CheckpointMetrics(Schema):
    """Losses in nats per answer token."""

    step: int
    train_loss: float | None = None
    valid_loss: float | None = None


class FineTuningCheckpoint(Schema):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str = Field(description="`name@N`, a `model` to call.")
    fine_tuning_job_id: str
    metrics: CheckpointMetrics
    step_number: int
