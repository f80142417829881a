"""Our training jobs, their histories and their checkpoints in the shapes of OpenAI's fine-tuning API."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from graft_client.schemas.jobs import JobEvent, JobState
from graft_client.schemas.openai_tuning import (
    CheckpointMetrics,
    FineTuningCheckpoint,
    FineTuningError,
    FineTuningEvent,
    FineTuningJob,
    HyperparametersInForce,
    MethodInForce,
)
from graft_server.api.openai.pages import unix_seconds
from graft_server.problems import ProblemError
from graft_server.registry.documents import DocumentRecord
from graft_server.registry.models import now
from graft_server.registry.records import JobRecord

_STATUS = {JobState.evaluating: "running"}
_SAID = {
    "queued": "Job queued",
    "running": "Training started",
    "evaluating": "Training is over; the result is measured now",
    "cancelled": "Job stopped",
}


def tuning_job(request: DocumentRecord, job: JobRecord) -> FineTuningJob:
    """A job with what was asked for it."""
    asked = request.data
    paused = job.state is JobState.cancelled and asked["paused"]
    hyperparameters = HyperparametersInForce(
        n_epochs=job.options["epochs"],
        batch_size=job.options["batch_size"],
        learning_rate_multiplier=asked["learning_rate_multiplier"],
    )
    eta = job.progress.eta_seconds if job.state is JobState.running else None
    return FineTuningJob(
        id=request.id,
        created_at=unix_seconds(job.created_at),
        error=FineTuningError(code="job_failed", message=job.error) if job.error is not None else None,
        fine_tuned_model=job.version,
        finished_at=unix_seconds(job.finished_at) if job.finished_at is not None and not paused else None,
        hyperparameters=hyperparameters,
        method=MethodInForce(supervised={"hyperparameters": hyperparameters}, name=job.method),
        model=asked["model"],
        result_files=asked["result_files"],
        seed=job.options["seed"],
        status="paused" if paused else _STATUS.get(job.state, job.state.value),
        trained_tokens=job.train_tokens if job.state.finished else None,
        training_file=asked["training_file"],
        validation_file=asked["validation_file"],
        estimated_finish=None if eta is None else unix_seconds(now()) + int(eta),
        metadata=asked["metadata"],
        suffix=asked["suffix"],
        task=job.task,
        options=job.options,
    )


def tuning_event(job_id: str, entry: JobEvent) -> FineTuningEvent:
    """One entry of a job's history."""
    event = FineTuningEvent(
        id=f"ftevent-{job_id}-{entry.seq}", created_at=unix_seconds(entry.time), message=_message(entry), data={}
    )
    if entry.kind == "metrics" and entry.data["phase"] == "training":
        event.type = "metrics"
        event.data = {
            **{name: entry.data[name] for name in ("step", "total_steps", "epoch")},
            "train_loss": entry.data["loss"],
            "valid_loss": entry.data["eval_loss"],
        }
    if entry.kind == "state" and entry.data["state"] == "failed":
        event.level = "error"
    return event


def event_number(job_id: str, event_id: str) -> int:
    """The place in the job's history of an event that was told.

    Raises:
        ProblemError: this job has no such event.
    """
    number = event_id.removeprefix(f"ftevent-{job_id}-")
    # Longer ones than a database can count are nobody's.
    if number == event_id or not number.isdecimal() or len(number) > 18:
        raise ProblemError("invalid-request", f"`after`: the job has no event {event_id!r}", param="after")
    return int(number)


def checkpoints_in(request_id: str, job: JobRecord, history: Iterable[JobEvent]) -> list[FineTuningCheckpoint]:
    """What can be called of a job's checkpoints, the newest first; ``history`` has the events of that kind. The last is
    what the job came out with."""
    found: dict[int, FineTuningCheckpoint] = {}
    if job.version is not None and job.finished_at is not None:
        step = job.progress.step
        found[step] = _checkpoint(request_id, step, job.version, job.finished_at)
        found[step].metrics.train_loss, found[step].metrics.valid_loss = job.progress.loss, job.progress.eval_loss
    for entry in history:
        if "version" in entry.data and entry.data["step"] not in found:
            step = entry.data["step"]
            found[step] = _checkpoint(request_id, step, entry.data["version"], entry.time)
            found[step].metrics.train_loss = entry.data.get("loss")
            found[step].metrics.valid_loss = entry.data.get("eval_loss")
    return list(found.values())


def _checkpoint(request_id: str, step: int, version: str, time: datetime) -> FineTuningCheckpoint:
    return FineTuningCheckpoint(
        id=f"ftckpt-{request_id.removeprefix('ftjob-')}-{step}",
        created_at=unix_seconds(time),
        fine_tuned_model_checkpoint=version,
        fine_tuning_job_id=request_id,
        metrics=CheckpointMetrics(step=step),
        step_number=step,
    )


def _message(entry: JobEvent) -> str:
    data = entry.data
    match entry.kind:
        case "log":
            return str(data["message"])
        case "checkpoint":
            called = f"; it is the model {data['version']}" if "version" in data else ""
            return f"Checkpoint at step {data['step']}{called}"
        case "metrics" if data["phase"] == "training":
            losses = [
                f"{name} loss {value:.4f}"
                for name, value in (("training", data["loss"]), ("validation", data["eval_loss"]))
                if value is not None
            ]
            return ", ".join([f"Step {data['step']}/{data['total_steps']}", *losses])
        case "metrics":
            return f"{data['phase'].capitalize()}: {data['step']}/{data['total_steps']}"
        case _ if data["state"] == "succeeded":
            return f"Job succeeded; the model is {data['version']}"
        case _ if data["state"] == "failed":
            return f"Job failed: {data.get('error', 'see the log of the server')}"
        case _:
            reason = f": {data['reason']}" if "reason" in data else ""
            return f"{_SAID[data['state']]}{reason}"
