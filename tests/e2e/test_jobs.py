"""Training jobs against kills, cancels and restarts: nothing is lost, and nothing is published twice."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from graft_client.calls import prediction
from graft_client.schemas.jobs import JobEvent, JobInfo, JobState
from graft_client.schemas.predict import SamplingOverrides
from support.processes import GRAFT, WORKER, ServerProcess, eventually, running

pytestmark = pytest.mark.torch

METHODS = ("lora", "rslora", "dora", "bottleneck", "output-head")
TEXT = "Turn off the lights"

#: A run of some seconds with many checkpoints.
LONG = {"max_steps": 100, "epochs": 100, "batch_size": 4, "checkpoint_every": 10, "eval_rows": 1, "r": 4}
SHORT = {"max_steps": 4, "epochs": 4, "eval_rows": 1}


def train(server: ServerProcess, data: Path, name: str, options: dict[str, Any], *more: str) -> str:
    """Queue a job; its id."""
    settings = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    return str(server.json("train", "translation", "--data", data, "--name", name, *settings, *more, "--detach")["id"])


def wait_for_checkpoint(server: ServerProcess, job: str, *, after: int = 0) -> int:
    """The step of a job's first checkpoint behind event ``after``."""
    with server.client() as client:
        for event in client.job_events(job, after=after):
            if event.kind == "checkpoint":
                return int(event.data["step"])
    raise AssertionError("the job ended without a checkpoint")


def history(server: ServerProcess, job: str) -> list[JobEvent]:
    with server.client() as client:
        return list(client.job_events(job, follow=False))


def finished(server: ServerProcess, job: str) -> JobInfo:
    with server.client() as client:
        for _ in client.job_events(job):
            pass
        return client.job(job)


def states(events: Sequence[JobEvent]) -> list[str]:
    return [event.data["state"] for event in events if event.kind == "state"]


def trained_steps(events: Sequence[JobEvent]) -> list[int]:
    return [event.data["step"] for event in events if event.kind == "metrics" and event.data["phase"] == "training"]


def versions(server: ServerProcess, name: str) -> list[str]:
    return [version["ref"] for version in server.json("adapters", "show", name)["versions"]]


@pytest.fixture(scope="module")
def adapters(server: ServerProcess, translations: Path) -> dict[str, JobInfo]:
    """An adapter of each method, trained by jobs that were all queued at once."""
    jobs = {method: train(server, translations, f"by-{method}", SHORT, "--method", method) for method in METHODS}
    return {method: finished(server, job) for method, job in jobs.items()}


def test_queued_jobs_run_one_after_the_other(adapters: dict[str, JobInfo]) -> None:
    ran = list(adapters.values())
    assert [job.state for job in ran] == [JobState.succeeded] * len(METHODS)
    for before, after in itertools.pairwise(ran):
        assert before.finished_at is not None
        assert after.started_at is not None
        assert after.created_at < before.finished_at <= after.started_at


def test_every_method_answers_in_one_bulk_request_as_alone(server: ServerProcess, adapters: dict[str, JobInfo]) -> None:
    brief = SamplingOverrides(max_tokens=24)
    names = [*(job.version for job in adapters.values()), "base"]
    items = [
        prediction(name, text, task="translation", sampling=brief)
        for text in (TEXT, "Restart", "The door is open")
        for name in names
    ]
    with server.client() as client:
        alone = [client.predict(item.adapter, item.text or "", task=item.task, sampling=brief) for item in items]
        together = sorted(client.predict_bulk(items), key=lambda line: line.index)
    assert [line.result and (line.result.adapter, line.result.text) for line in together] == [
        (single.adapter, single.text) for single in alone
    ]
    assert [single.adapter for single in alone] == names * 3


def test_a_cancelled_job_keeps_its_checkpoint_and_resumes(server: ServerProcess, translations: Path) -> None:
    job = train(server, translations, "stopped", LONG)
    with subprocess.Popen(
        [GRAFT, "jobs", "follow", job], env={"GRAFT_URL": server.url}, stderr=subprocess.PIPE, text=True
    ) as following:
        wait_for_checkpoint(server, job)
        server.graft("jobs", "cancel", job)
        assert following.stderr is not None
        told = following.stderr.read()
        assert following.wait(timeout=30) == 7
    assert f"Error: job {job} was cancelled; `graft jobs resume {job}` goes on from its last checkpoint" in told

    stopped = finished(server, job)
    assert (stopped.state, stopped.version) == (JobState.cancelled, None)
    events = history(server, job)
    last = [event.data["step"] for event in events if event.kind == "checkpoint"][-1]
    # The worker wrote one more when it was told to stop, at the very step it had reached.
    assert last >= stopped.progress.step
    assert "no adapter 'stopped'" in server.graft("adapters", "show", "stopped", code=4).error

    assert "queued" in server.graft("jobs", "resume", job).out
    followed = server.graft("jobs", "follow", job)
    assert "published stopped@1" in followed.out
    resumed = trained_steps(history(server, job)[len(events) :])
    assert resumed[0] == last + 1
    assert resumed[-1] == LONG["max_steps"]
    assert versions(server, "stopped") == ["stopped@1"]
    again = server.graft("jobs", "resume", job, code=5)
    assert "is succeeded: only a failed or cancelled job can be resumed" in again.error


def test_a_killed_worker_goes_on_from_its_checkpoint(server: ServerProcess, translations: Path) -> None:
    job = train(server, translations, "shot", LONG)
    step = wait_for_checkpoint(server, job)
    worker = server.child(WORKER)
    worker.kill()
    done = finished(server, job)
    assert (done.state, done.version, done.attempts) == (JobState.succeeded, "shot@1", 1)
    events = history(server, job)
    logs = [event.data["message"] for event in events if event.kind == "log"]
    assert "the worker was ended by SIGKILL (start 1 of 3)" in logs
    killed = next(index for index, event in enumerate(events) if "SIGKILL" in str(event.data.get("message")))
    assert trained_steps(events[killed:])[0] > step
    assert versions(server, "shot") == ["shot@1"]


def test_jobs_outlive_a_server_that_is_stopped_and_one_that_is_killed(
    tiny_model: Path, translations: Path, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    with running(tiny_model, data_dir, threads=1) as server:
        job = train(server, translations, "survivor", LONG)
        waiting = train(server, translations, "patient", SHORT)
        wait_for_checkpoint(server, job)
        assert server.stop() == 0

    with running(tiny_model, data_dir, threads=1) as server:
        seen = history(server, job)[-1].seq
        kept = [event.data["step"] for event in history(server, job) if event.kind == "checkpoint"]
        step = wait_for_checkpoint(server, job, after=seen)
        # Told to stop, the first worker wrote a checkpoint at the very step it had reached.
        assert trained_steps(history(server, job)[seen:])[0] == kept[-1] + 1
        server.kill()

    with running(tiny_model, data_dir, threads=1) as server:
        done = finished(server, job)
        assert (done.state, done.version, done.attempts) == (JobState.succeeded, "survivor@1", 3)
        events = history(server, job)
        assert states(events) == ["queued", "running"] * 3 + ["evaluating", "succeeded"]
        third = [index for index, event in enumerate(events) if event.data.get("state") == "running"][2]
        assert trained_steps(events[third:])[0] > step
        assert finished(server, waiting).version == "patient@1"
        published = {adapter["name"]: len(adapter["versions"]) for adapter in server.json("adapters", "list")}
        assert published == {"patient": 1, "survivor": 1}
        assert server.graft("query", "survivor", TEXT, "--max-tokens", "5").out.strip()
    assert len(list((data_dir / "artefacts").glob("*/*"))) == 2
    assert not list((data_dir / "staging").iterdir())


def test_a_job_that_can_not_work_says_why(server: ServerProcess, translations: Path) -> None:
    # Whatever the update is, it overflows.
    options = {"learning_rate": 10, "alpha": 1e30, "eval_rows": 1}
    settings = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    done = server.graft("train", "translation", "--data", translations, "--name", "never", *settings, code=7)
    (job,) = server.json("jobs", "list", "--state", "failed")
    assert done.error.startswith(f"job {job['id']} failed: the loss is no longer finite (step ")
    assert "lower learning_rate, which is 10" in done.error
    assert "\n" not in job["error"]
    assert job["version"] is None
    assert "no adapter 'never'" in server.graft("adapters", "show", "never", code=4).error


def test_cancelling_a_job_that_waits(server: ServerProcess, translations: Path) -> None:
    first = train(server, translations, "first", LONG)
    second = train(server, translations, "second", SHORT)
    assert server.json("jobs", "cancel", second)["state"] == "cancelled"
    eventually(lambda: server.children(WORKER), what="the first job's worker")
    assert server.json("jobs", "cancel", first)["state"] in ("running", "cancelled")
    assert finished(server, first).state is JobState.cancelled
    assert finished(server, second).attempts == 0
