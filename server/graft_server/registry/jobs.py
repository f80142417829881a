"""Training jobs: their states, the queue and their events. Rows in, records out."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any, Literal, cast

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from graft_client.schemas.jobs import JobEvent, JobProgress, JobState
from graft_server.registry import adapters, datasets
from graft_server.registry.artefacts import ArtefactStore
from graft_server.registry.database import next_number
from graft_server.registry.errors import ConflictError, UnknownError
from graft_server.registry.models import Event, Job, now
from graft_server.registry.records import Claim, JobRecord

EventKind = Literal["state", "metrics", "checkpoint", "log"]

#: States of a job at work.
WORKING = (JobState.running, JobState.evaluating)
#: So long after its end a job that failed or was cancelled can be resumed by another server from where it stood.
_RESUMABLE = timedelta(days=7)
#: What ``update_job`` may do. ``succeeded`` comes with a published version only, and a finished job is queued
#: again by ``resume_job`` only.
_MOVES = {
    JobState.queued: {JobState.running, JobState.failed, JobState.cancelled},
    JobState.running: {JobState.evaluating, JobState.queued, JobState.failed, JobState.cancelled},
    JobState.evaluating: {JobState.queued, JobState.failed, JobState.cancelled},
}


def create(session: Session, *, task: str, adapter: str, dataset: str, method: str, options: dict[str, Any]) -> Job:
    """Queue a job.

    Raises:
        InvalidNameError: no adapter can be called so.
        UnknownError: the dataset does not exist.
        ConflictError: the dataset or the adapter belongs to another task, or a route has the name.
    """
    adapters.check_name(adapter)
    adapters.check_free(session, adapter, task)
    examples = datasets.find(session, dataset)
    if examples.task != task:
        raise ConflictError(f"dataset {dataset!r} belongs to the task {examples.task!r}, not to {task!r}")
    job = Job(
        id=secrets.token_hex(6),
        number=next_number(session, "job"),
        queue_number=next_number(session, "queue"),
        state=JobState.queued.value,
        task=task,
        adapter=adapter,
        dataset=dataset,
        method=method,
        options=options,
        progress=JobProgress().model_dump(mode="json"),
        attempts=0,
        cancel_requested=False,
        created_at=now(),
        last_event=0,
    )
    session.add(job)
    session.flush()
    append_event(session, job, "state", {"state": job.state})
    return job


def find(session: Session, identity: str, *, lock: bool = False) -> Job:
    """A job; with ``lock`` nobody else changes it before this transaction ends.

    Raises:
        UnknownError: there is none.
    """
    job = session.get(Job, identity, with_for_update=lock)
    if job is None:
        raise UnknownError.among("job", identity, session.scalars(select(Job.id)))
    return job


def list_all(session: Session, state: JobState | None, limit: int) -> list[Job]:
    """The newest first."""
    query = select(Job).order_by(Job.number.desc()).limit(limit)
    if state is not None:
        query = query.where(Job.state == state.value)
    return list(session.scalars(query))


def move(session: Session, job: Job, state: JobState, **details: Any) -> None:
    """Set a job's state with its times, and append the event; ``details`` go into the event."""
    job.state = state.value
    job.finished_at = now() if state.finished else None
    if state is JobState.running and job.started_at is None:
        job.started_at = now()
    if state not in WORKING:
        job.server = job.leased_until = None
    if state is JobState.queued:
        job.error = None
        job.cancel_requested = False
    append_event(session, job, "state", {"state": state.value, **details})


def update(
    session: Session,
    job: Job,
    *,
    state: JobState | None = None,
    progress: JobProgress | None = None,
    error: str | None = None,
    options: dict[str, Any] | None = None,
    train_seconds: float | None = None,
    train_tokens: int | None = None,
) -> None:
    """Change what is given. Naming the state that the job has changes nothing and adds no event.

    Raises:
        ConflictError: the job can't go to that state.
    """
    current = JobState(job.state)
    if progress is not None:
        job.progress = progress.model_dump(mode="json")
    if options is not None:
        job.options = options
    if train_seconds is not None:
        job.train_seconds = train_seconds
    if train_tokens is not None:
        job.train_tokens = train_tokens
    if state is not None and state is not current:
        if state not in _MOVES.get(current, ()):
            raise ConflictError(f"job {job.id!r} is {current} and can't become {state}")
        move(session, job, state, **({"error": error} if error is not None else {}))
    if error is not None:
        job.error = error


def succeed(session: Session, job: Job, version: str) -> None:
    """Mark a job as succeeded with the version that it published.

    Raises:
        ConflictError: the job is not at work.
    """
    if JobState(job.state) not in WORKING:
        raise ConflictError(f"job {job.id!r} is {job.state} and can't publish {version}")
    job.version = version
    job.error = None
    move(session, job, JobState.succeeded, version=version)


def request_cancel(session: Session, job: Job) -> bool:
    """Whether that ended the job.

    Raises:
        ConflictError: the job has succeeded or failed.
    """
    state = JobState(job.state)
    if state is JobState.queued:
        move(session, job, JobState.cancelled)
        return True
    if not state.finished:
        job.cancel_requested = True
    elif state is not JobState.cancelled:
        raise ConflictError(f"job {job.id!r} has {state} and can't be cancelled")
    return False


def resume(session: Session, job: Job) -> None:
    """Queue a failed or cancelled job again, behind those that wait.

    Raises:
        ConflictError: the job is not failed or cancelled.
        UnknownError: a dataset of it was deleted.
    """
    if JobState(job.state) not in (JobState.failed, JobState.cancelled):
        raise ConflictError(f"job {job.id!r} is {job.state}: only a failed or cancelled job can be resumed")
    for dataset in filter(None, (job.dataset, job.options.get("validation_dataset"))):
        datasets.find(session, dataset)
    job.queue_number = next_number(session, "queue")
    move(session, job, JobState.queued, reason="resumed")


def with_checkpoints() -> Select[str]:
    """The jobs whose checkpoints stay in the shared store: those that are not over, or may well be resumed."""
    return select(Job.id).where(
        Job.state != JobState.succeeded.value,
        or_(Job.finished_at.is_(None), Job.finished_at > now() - _RESUMABLE),
    )


def append_event(session: Session, job: Job, kind: EventKind, data: dict[str, Any]) -> Event:
    job.last_event += 1
    event = Event(job=job.id, seq=job.last_event, time=now(), kind=kind, data=data)
    session.add(event)
    session.flush()
    return event


def events(session: Session, job: Job, after: int, limit: int) -> list[Event]:
    query = select(Event).where(Event.job == job.id, Event.seq > after).order_by(Event.seq).limit(limit)
    return list(session.scalars(query))


def recent_events(
    session: Session, job: Job, before: int | None, limit: int | None, kind: EventKind | None
) -> list[Event]:
    query = select(Event).where(Event.job == job.id).order_by(Event.seq.desc()).limit(limit)
    if before is not None:
        query = query.where(Event.seq < before)
    if kind is not None:
        query = query.where(Event.kind == kind)
    return list(session.scalars(query))


def count_by_state(session: Session) -> dict[str, int]:
    """Every state, also those that no job is in."""
    counted = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
    return {state.value: counted.get(state.value, 0) for state in JobState}


def claim_of(job: Job) -> Claim | None:
    """The claim of a job at work."""
    if JobState(job.state) not in WORKING or job.server is None:
        return None
    return Claim(job.id, job.server, job.attempts)


def record(job: Job, store: ArtefactStore) -> JobRecord:
    return JobRecord(
        id=job.id,
        state=JobState(job.state),
        task=job.task,
        adapter=job.adapter,
        dataset=job.dataset,
        method=job.method,
        options=job.options,
        progress=JobProgress.model_validate(job.progress),
        folder=store.jobs / job.id,
        version=job.version,
        error=job.error,
        attempts=job.attempts,
        cancel_requested=job.cancel_requested,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        train_seconds=job.train_seconds,
        train_tokens=job.train_tokens,
        claim=claim_of(job),
    )


def event_record(event: Event) -> JobEvent:
    return JobEvent(seq=event.seq, time=event.time, kind=cast("EventKind", event.kind), data=event.data)
