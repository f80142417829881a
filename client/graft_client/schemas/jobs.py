"""Training jobs and their events."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from graft_client.schemas.common import RequestSchema, Schema


class JobState(StrEnum):
    queued = "queued"
    running = "running"
    evaluating = "evaluating"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def finished(self) -> bool:
        return self in (JobState.succeeded, JobState.failed, JobState.cancelled)


class JobPlan(RequestSchema):
    """What a training job is to make, and how."""

    task: str
    adapter: str = Field(description="The adapter's name; the job publishes its next version.")
    method: str = "lora"
    options: dict[str, Any] = Field({}, description="Training and method options, as for `--set`.")


class JobCreate(JobPlan):
    """A training job to run."""

    dataset: str = Field(description="A dataset's id.")


class JobCheck(Schema):
    """A plan that would be taken."""

    options: dict[str, Any] = Field(description="Every option in force, defaults included.")


class JobProgress(Schema):
    """Where a job stands. Times in seconds, losses in nats per token."""

    phase: str = "queued"
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    eval_loss: float | None = None
    tokens: int = 0
    tokens_per_second: float | None = None
    eta_seconds: float | None = None


class JobInfo(Schema):
    id: str
    state: JobState
    task: str
    adapter: str
    dataset: str
    method: str
    options: dict[str, Any] = Field(description="Every option in force, defaults included.")
    progress: JobProgress
    version: str | None = Field(None, description="`name@N`, once published.")
    error: str | None = None
    attempts: int = 0
    server: str | None = Field(None, description="The name of the server that works at it.")
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    train_seconds: float | None = None
    train_tokens: int | None = None


class JobEvent(Schema):
    """One entry of a job's history, in the order of ``seq``. Sent live as server-sent events."""

    seq: int
    time: datetime
    kind: Literal["state", "metrics", "checkpoint", "log"]
    data: dict[str, Any]
