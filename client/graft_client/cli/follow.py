"""Following a training job until it has finished, whatever becomes of the connection meanwhile."""

from __future__ import annotations

import time
from typing import Any

import click

from graft_client import Client
from graft_client.cli import INTERRUPTED, render
from graft_client.cli.outage import Outage
from graft_client.cli.progress import TrainingBar
from graft_client.cli.report import show_evaluation
from graft_client.cli.session import Session, plain
from graft_client.errors import GraftError, JobFailedError
from graft_client.schemas.adapters import VersionInfo
from graft_client.schemas.jobs import JobEvent, JobInfo, JobProgress, JobState


def follow_job(session: Session, client: Client, job_id: str) -> None:
    """Shows a job's progress, and its result at the end. Ctrl-C leaves the job running.

    The server has answered before: one that goes away now is waited for.

    Raises:
        JobFailedError: it failed or was cancelled.
        ConnectError: the server stayed away.
    """
    try:
        job, version = _watch(session, client, job_id)
    except KeyboardInterrupt:
        click.echo(
            f"\nno longer following; job {job_id} goes on. To follow it again: graft jobs follow {job_id};"
            f" to stop it: graft jobs cancel {job_id}",
            err=True,
        )
        raise click.exceptions.Exit(INTERRUPTED) from None
    if session.as_json:
        session.emit({"job": plain(job), "version": plain(version)})
    if job.state is JobState.failed:
        raise JobFailedError(
            f"job {job.id} failed: {job.error or 'no reason was given'};"
            f" `graft jobs resume {job.id}` goes on from its last checkpoint"
        )
    if job.state is JobState.cancelled:
        raise JobFailedError(
            f"job {job.id} was cancelled; `graft jobs resume {job.id}` goes on from its last checkpoint"
        )
    if not session.as_json:
        _show_result(job, version)


def _watch(session: Session, client: Client, job_id: str) -> tuple[JobInfo, VersionInfo | None]:
    """Shows what happens until the job has finished; then the job, and the version that it published."""
    seen = 0
    with TrainingBar(session) as bar:
        outage = Outage(client.url, bar.say, f"job {job_id} may go on; to follow it again: graft jobs follow {job_id}")
        while True:
            before = seen
            try:
                for event in client.job_events(job_id, after=seen):
                    seen = event.seq
                    outage.over()
                    _show_event(bar, event)
                job = client.job(job_id)
                if job.state.finished:
                    return job, _published(client, job)
                outage.over()
            except GraftError as error:
                outage.wait(error)
                continue
            if seen == before:  # the server drains or has just restarted: don't press it
                time.sleep(1.0)


def _show_event(bar: TrainingBar, event: JobEvent) -> None:
    if event.kind == "metrics":
        progress = JobProgress.model_validate(event.data)
        bar.update(progress.phase, progress.step, progress.total_steps, _figures(progress))
    elif event.kind == "state" and (state := event.data.get("state")) is not None:
        bar.phase(str(state))
    elif event.kind == "log" and (message := event.data.get("message")) is not None:
        bar.say(render.printable(str(message)))


def _figures(progress: JobProgress) -> str:
    parts: list[tuple[str, Any]] = [
        ("loss {:.3f}", progress.loss),
        ("eval loss {:.3f}", progress.eval_loss),
        ("{:.0f} tok/s", progress.tokens_per_second),
    ]
    texts = [template.format(value) for template, value in parts if value is not None]
    if progress.eta_seconds is not None:
        texts.append(f"{render.duration(progress.eta_seconds)} left")
    return "  ".join(texts)


def _published(client: Client, job: JobInfo) -> VersionInfo | None:
    if job.version is None:
        return None
    name, _, number = job.version.rpartition("@")
    return client.version(name, int(number))


def _show_result(job: JobInfo, version: VersionInfo | None) -> None:
    if version is None:
        click.echo(f"job {job.id} succeeded")
        return
    if version.evaluation is not None:
        show_evaluation(version.evaluation, adapter=version.ref)
    trained = [f"{version.train_rows} rows" if version.train_rows else "", _spent(version)]
    detail = ", ".join(filter(None, trained))
    click.echo(f"published {version.ref}" + (f" ({detail})" if detail else ""))
    click.echo(f'try it: graft query {version.adapter} "..."')


def _spent(version: VersionInfo) -> str:
    if version.train_seconds is None:
        return ""
    text = f"trained in {render.duration(version.train_seconds)}"
    if version.train_tokens and version.train_seconds > 0:
        text += f" at {version.train_tokens / version.train_seconds:.0f} tok/s"
    return text
