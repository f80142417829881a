"""What a worker is told (``spec.json`` in the job's folder), what it says (JSON lines), and what it leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from graft_client.schemas.jobs import JobProgress

SPEC_FILE = "spec.json"
SUMMARY_FILE = "summary.json"
HELD_OUT_FILE = "held_out.jsonl"
RESULT_FOLDER = "result"
CHECKPOINT_FOLDER = "checkpoints"
#: Checkpoints in their folder: the names sort by their steps.
CHECKPOINT_NAME = "step-{:08d}"
SNAPSHOT_FOLDER = "snapshots"
LOG_FILE = "worker.log"
STATE_FILE = "task_state.json"
LINEAGE_FILE = "graft.json"

#: Exit codes of the worker.
DONE = 0
STOPPED = 3
FAILED = 4


def checkpoints_of(adapter: str) -> str:
    """The name of the adapter whose versions are the checkpoints of another one's jobs."""
    return f"{adapter}-checkpoints"


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class BaseModelSpec(_Document):
    """The base model on disk; the fields of ``base_model.BaseModel``."""

    name: str
    path: Path
    fingerprint: str
    architecture: str
    context_length: int
    parameters: int


class DataSpec(_Document):
    """A dataset's files."""

    files: list[Path]
    format: str | None = None
    skip_bad: bool = False


class TrainingSpec(_Document):
    """One training run."""

    job: str
    base: BaseModelSpec
    task: str
    method: str
    files: list[Path]
    format: str | None = None
    skip_bad: bool = False
    validation: DataSpec | None = Field(None, description="Rows to watch the loss on, where they are not held out.")
    options: dict[str, Any] = Field({}, description="Training and method options, flat.")
    device: str = "auto"
    memory: float | None = Field(None, gt=0, le=1, description="Share of a CUDA device's memory that the run may take.")
    threads: int | None = Field(None, ge=1, description="CPU threads; by default torch's own choice.")
    plugins: str = Field("*", description="Which installed plugins to load, as in the server's settings.")


class TrainingSummary(_Document):
    """Figures of a finished run. Losses in nats per answer token."""

    train_rows: int
    eval_rows: int
    validation_rows: int
    bad_rows: int
    long_rows: int
    steps: int
    total_steps: int
    stopped_early: bool
    train_seconds: float
    train_tokens: int
    tokens_per_second: float
    loss: float | None
    eval_loss: float | None
    rank: int


class MetricsLine(_Document):
    kind: Literal["metrics"] = "metrics"
    progress: JobProgress


class CheckpointLine(_Document):
    kind: Literal["checkpoint"] = "checkpoint"
    step: int


class LogLine(_Document):
    kind: Literal["log"] = "log"
    message: str


class DoneLine(_Document):
    kind: Literal["done"] = "done"
    summary: TrainingSummary


class FailedLine(_Document):
    kind: Literal["failed"] = "failed"
    error: str


Line = Annotated[MetricsLine | CheckpointLine | LogLine | DoneLine | FailedLine, Field(discriminator="kind")]
LINE: TypeAdapter[Line] = TypeAdapter(Line)
