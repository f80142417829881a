"""Who works at a job. A claim is a lease with a fencing token (M. Kleppmann, "How to do distributed locking", 2016):
the server that has it must be heard of before it runs out, and its number tells it from the job's later claims, so that
a server which was stopped for long can't write over its successor. Times are the database's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, exists, or_, select
from sqlalchemy.orm import Session

from graft_client.schemas.jobs import JobState
from graft_server.registry import jobs
from graft_server.registry.database import moment
from graft_server.registry.errors import LostClaimError
from graft_server.registry.models import Job
from graft_server.registry.records import Claim


def anything_to_do(session: Session, *, take_over: bool) -> bool:
    """Whether a look with ``take`` may find something."""
    wanted = Job.state == JobState.queued.value
    condition = or_(wanted, _expired(session)) if take_over else wanted
    return bool(session.scalar(select(exists().where(condition))))


def take(
    session: Session, server: str, *, seconds: float, readable: Callable[[str], bool], take_over: bool
) -> Job | None:
    """Start the job that has waited longest of those whose dataset is ``readable`` here, for ``server``. With
    ``take_over``, jobs of servers that were not heard of in time are queued again first."""
    if take_over:
        requeue(session, _expired(session), "the server that ran it was not heard of for too long")
    waiting = select(Job.id, Job.dataset).where(Job.state == JobState.queued.value).order_by(Job.queue_number)
    for identity, dataset in session.execute(waiting):
        if readable(dataset):
            job = jobs.find(session, identity, lock=True)
            job.attempts += 1
            job.server = server
            job.leased_until = moment(session) + timedelta(seconds=seconds)
            jobs.move(session, job, JobState.running)
            return job
    return None


def recover(session: Session, server: str) -> list[Job]:
    """Queue again what a server left when it died, and what nobody has claimed."""
    own = or_(Job.server == server, Job.server.is_(None))
    return requeue(session, Job.state.in_(jobs.WORKING) & own, "the server that ran it ended")


def renew(session: Session, claims: Sequence[Claim], *, seconds: float) -> list[Job]:
    """Prolong claims; the jobs of those that still hold."""
    until = moment(session) + timedelta(seconds=seconds)
    rows = session.scalars(select(Job).where(Job.id.in_([claim.job for claim in claims])).with_for_update())
    held = [job for job in rows if jobs.claim_of(job) in claims]
    for job in held:
        job.leased_until = until
    return held


def check(job: Job, claim: Claim | None) -> None:
    """Whether a change may be made; without a claim it is made by somebody who needs none.

    Raises:
        LostClaimError: the claim holds no more.
    """
    if claim is not None and jobs.claim_of(job) != claim:
        raise LostClaimError(job.id)


def requeue(session: Session, which: ColumnElement[bool], reason: str) -> list[Job]:
    """Queue jobs again; those that were to be cancelled are cancelled now."""
    dead = list(session.scalars(select(Job).where(which).order_by(Job.queue_number).with_for_update()))
    for job in dead:
        jobs.move(session, job, JobState.cancelled if job.cancel_requested else JobState.queued, reason=reason)
    return dead


def _expired(session: Session) -> ColumnElement[bool]:
    return Job.state.in_(jobs.WORKING) & (Job.leased_until < moment(session))
