"""``graft jobs``: training runs, while they run and after."""

from __future__ import annotations

import click

from graft_client.cli import render
from graft_client.cli.completion import complete_job
from graft_client.cli.lazy import Group
from graft_client.cli.session import Session, with_session

_STATES = ("queued", "running", "evaluating", "succeeded", "failed", "cancelled")


@click.group(cls=Group, examples=["graft jobs list", "graft jobs follow job-7c1e"])
def jobs() -> None:
    """Follow, cancel and resume training jobs."""


@jobs.command("list", examples=["graft jobs list", "graft jobs list --state running --json"])
@click.option("--state", type=click.Choice(_STATES), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many, the newest first.")
@with_session
def list_jobs(session: Session, state: str | None, limit: int | None) -> None:
    """List jobs, the newest first."""
    with session.client() as client:
        found = client.jobs(state=state, limit=limit)
    if session.as_json:
        session.emit(found)
    else:
        render.table(
            ["id", "state", "task", "adapter", "method", "step", "loss", "version", "created"],
            [
                (
                    job.id,
                    job.state,
                    job.task,
                    job.adapter,
                    job.method,
                    f"{job.progress.step}/{job.progress.total_steps}" if job.progress.total_steps else None,
                    job.progress.loss,
                    job.version,
                    job.created_at,
                )
                for job in found
            ],
            right=("step", "loss"),
        )


@jobs.command("show", examples=["graft jobs show job-7c1e"])
@click.argument("job", shell_complete=complete_job)
@with_session
def show(session: Session, job: str) -> None:
    """Show a job: its options, progress and outcome."""
    with session.client() as client:
        found = client.job(job)
    if session.as_json:
        session.emit(found)
        return
    progress = found.progress
    render.fields(
        [
            ("id", found.id),
            ("state", found.state),
            ("error", found.error),
            ("task", found.task),
            ("adapter", found.adapter),
            ("version", found.version),
            ("dataset", found.dataset),
            ("method", found.method),
            ("options", [f"{name}={value}" for name, value in sorted(found.options.items())]),
            ("step", f"{progress.step} of {progress.total_steps}" if progress.total_steps else None),
            ("loss", progress.loss),
            ("eval loss", progress.eval_loss),
            ("tokens/s", progress.tokens_per_second),
            (
                "time left",
                render.duration(progress.eta_seconds) if progress.eta_seconds is not None else None,
            ),
            ("attempts", found.attempts),
            ("at work on", found.server),
            ("created", found.created_at),
            ("started", found.started_at),
            ("finished", found.finished_at),
        ]
    )


@jobs.command("follow", examples=["graft jobs follow job-7c1e"])
@click.argument("job", shell_complete=complete_job)
@with_session
def follow(session: Session, job: str) -> None:
    """Follow a job until it has finished, then show its result. Exits with 7 where the job fails.

    Ctrl-C stops following; the job goes on.
    """
    from graft_client.cli.follow import follow_job

    with session.client() as client:
        follow_job(session, client, client.job(job).id)


@jobs.command("cancel", examples=["graft jobs cancel job-7c1e"])
@click.argument("job", shell_complete=complete_job)
@with_session
def cancel(session: Session, job: str) -> None:
    """Stop a job. Its last checkpoint is kept, so that it can be resumed."""
    with session.client() as client:
        found = client.cancel_job(job)
    if session.as_json:
        session.emit(found)
    else:
        click.echo(f"{found.id} {found.state}; to go on from its last checkpoint: graft jobs resume {found.id}")


@jobs.command("resume", examples=["graft jobs resume job-7c1e"])
@click.argument("job", shell_complete=complete_job)
@with_session
def resume(session: Session, job: str) -> None:
    """Go on with a failed or cancelled job from its last checkpoint."""
    with session.client() as client:
        found = client.resume_job(job)
    if session.as_json:
        session.emit(found)
    else:
        click.echo(f"{found.id} {found.state}; to follow it: graft jobs follow {found.id}")
