"""Jobs from the queue to a published version, with real worker processes: killed, cancelled, stopped and resumed."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from graft_client.schemas.adapters import EvaluationSummary
from graft_client.schemas.common import MetricReport, MetricValue
from graft_client.schemas.jobs import JobState
from graft_plugins.manager import PluginHost
from graft_server.base_model.folder import BaseModel
from graft_server.config import Settings
from graft_server.registry import ConflictError, Registry
from graft_server.registry.errors import StorageFullError, StoreUnavailableError
from graft_server.registry.objects import ObjectStore
from graft_server.registry.records import JobRecord, VersionRecord
from graft_server.routing.auto.profiles import PROFILE_FILE
from graft_server.training.options import resolve_options
from graft_server.training.runner import JobRunner
from graft_server.training.spec import DONE, FAILED, RESULT_FOLDER, STOPPED
from support.adapter_files import read_adapter
from support.postgresql import postgresql
from support.waiting import until

pytestmark = pytest.mark.torch

WORDS = [first + second for first in ("ka", "lo", "mi", "tu", "re") for second in ("sel", "dor", "ban", "fix")]
ROWS = "".join(
    json.dumps({"source": f"Turn the {word} {way}", "target": f"{word.title()} {way}schalten"}) + "\n"
    for word in WORDS
    for way in ("an", "aus")
)
ALIKE = "".join(json.dumps({"source": f"Turn lamp {n} on", "target": f"Lampe {n} an"}) + "\n" for n in range(40))
OPTIONS = {
    "r": 4,
    "batch_size": 4,
    "epochs": 3,
    "checkpoint_every": 2,
    "validation_rows": 0,
    "precision": "fp32",
    "dropout": 0.1,
}
SUMMARY = EvaluationSummary(adapter=MetricReport(primary="chrf", metrics={"chrf": MetricValue(value=9.0)}, rows=8))


class Jobs:
    """A registry, a runner over it, and what happened."""

    def __init__(self, registry: Registry, host: PluginHost, base: BaseModel, data_dir: Path) -> None:
        self.registry = registry
        self.host = host
        self.published: list[VersionRecord] = []
        self.finished: list[JobRecord] = []
        self.evaluate: Callable[..., Any] = self._evaluate
        self._heard: asyncio.Queue[tuple[str, str, dict[str, Any]]] = asyncio.Queue()
        self._over: asyncio.Queue[JobRecord] = asyncio.Queue()
        self._settings = Settings(base_model="tiny", data_dir=data_dir)
        self._base = base
        self._listen(asyncio.get_running_loop())

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        real = self.registry.add_event

        def add_event(job_id: str, kind: Any, data: dict[str, Any], **claim: Any) -> Any:
            event = real(job_id, kind, data, **claim)
            loop.call_soon_threadsafe(self._heard.put_nowait, (job_id, kind, data))
            return event

        self.registry.add_event = add_event  # type: ignore[method-assign]

    def runner(self) -> JobRunner:
        def finish(job: JobRecord) -> None:
            self.finished.append(job)
            self._over.put_nowait(job)

        async def evaluate(*arguments: Any) -> EvaluationSummary:
            return await self.evaluate(*arguments)

        return JobRunner(self.registry, self.host, self._base, self._settings, evaluate, self.published.append, finish)

    async def _evaluate(
        self, job: JobRecord, folder: Path, held_out: Path, progress: Callable[[int, int], None]
    ) -> EvaluationSummary:
        read_adapter(folder)
        with held_out.open() as lines:
            rows = list(lines)
        for done in range(len(rows)):
            progress(done + 1, len(rows))
        return SUMMARY

    def submit(self, rows: str = ROWS, *, adapter: str = "de", bad_rows: int = 0, **options: Any) -> JobRecord:
        source = self._settings.data_dir / "upload"
        source.mkdir(parents=True, exist_ok=True)
        (source / "rows.jsonl").write_text(rows)
        dataset = self.registry.add_dataset(
            task="translation", format="jsonl", rows=40, bad_rows=bad_rows, folder=source
        )
        method = "lora"
        flat = resolve_options(self.host.task("translation"), self.host.method(method), OPTIONS | options).flat
        return self.registry.create_job(
            task="translation", adapter=adapter, dataset=dataset.id, method=method, options=flat
        )

    async def heard(self, job: JobRecord, kind: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next event of this job and kind that holds."""
        async with asyncio.timeout(90):
            while True:
                of, found, data = await self._heard.get()
                if (of, found) == (job.id, kind) and holds(data):
                    return data

    async def over(self) -> JobRecord:
        """The next job that finishes."""
        async with asyncio.timeout(90):
            return await self._over.get()


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """For workers: on a busy machine, threads on tiny tensors wait for each other most of the time."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry.open(tmp_path / "data")
    yield opened
    opened.close()


@pytest.fixture
async def jobs(registry: Registry, host: PluginHost, base: BaseModel, tmp_path: Path) -> Jobs:
    return Jobs(registry, host, base, tmp_path / "data")


@pytest.fixture
async def runner(jobs: Jobs) -> AsyncIterator[JobRunner]:
    runner = jobs.runner()
    await runner.start()
    yield runner
    await runner.stop()


def workers() -> list[psutil.Process]:
    # Children that have ended and that nobody has asked for, of other tests, have no command line.
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "graft_server.training.worker" in child.cmdline()]


def worker() -> psutil.Process:
    [found] = workers()
    return found


async def test_a_killed_worker_goes_on_and_ends_like_an_unbroken_one(jobs: Jobs, runner: JobRunner) -> None:
    unbroken = jobs.submit(epochs=20, checkpoint_every=10)
    runner.wake()
    assert (await jobs.over()).state is JobState.succeeded

    killed = jobs.submit(adapter="de2", epochs=20, checkpoint_every=10)
    runner.wake()
    await jobs.heard(killed, "checkpoint", lambda data: data["step"] >= 20)
    worker().kill()
    log = await jobs.heard(killed, "log", lambda data: "SIGKILL" in data["message"])
    assert log["message"] == "the worker was ended by SIGKILL (start 1 of 3)"
    finished = await jobs.over()

    assert finished.id == killed.id
    assert (finished.state, finished.version, finished.error) == (JobState.succeeded, "de2@1", None)
    one, other = (read_adapter(version.path)[1] for version in jobs.published)
    assert one.keys() == other.keys()
    assert all(one[name].allclose(other[name], atol=1e-6) for name in one)
    lineage = jobs.published[0].lineage
    assert (lineage.job, lineage.task, lineage.method, lineage.rank) == (unbroken.id, "translation", "lora", 4)
    assert lineage.evaluation == SUMMARY
    assert lineage.train_tokens is not None
    assert lineage.train_tokens > 500
    assert lineage.options["batch_size"] == 4
    phases = [e.data["phase"] for e in jobs.registry.events(unbroken.id) if e.kind == "metrics"]
    assert list(dict.fromkeys(phases)) == ["reading data", "loading the base model", "training", "saving", "evaluating"]
    result = json.loads((jobs.published[0].path / "graft.json").read_text())
    assert result["base_fingerprint"] == lineage.base_fingerprint
    assert not any("/" in str(value) for value in read_adapter(jobs.published[0].path)[0].values())


async def test_a_cancelled_job_keeps_its_checkpoint_and_resumes(jobs: Jobs, runner: JobRunner) -> None:
    job = jobs.submit(epochs=500, checkpoint_every=1000)
    runner.wake()
    await jobs.heard(job, "metrics", lambda data: data["step"] >= 1)
    jobs.registry.request_cancel(job.id)
    await runner.cancel(job.id)
    assert (await jobs.over()).state is JobState.cancelled
    [kept] = list((job.folder / "checkpoints").iterdir())
    step = int(kept.name.removeprefix("step-"))
    assert step >= 1
    assert not (job.folder / RESULT_FOLDER).exists()
    jobs.registry.update_job(job.id, options=job.options | {"epochs": 1, "max_steps": step})
    jobs.registry.resume_job(job.id)
    runner.wake()
    finished = await jobs.over()
    assert finished.state is JobState.succeeded
    # The version has the files now.
    await until(lambda: not (job.folder / "checkpoints").exists())
    assert sorted(file.name for file in job.folder.iterdir() if file.is_file()) == [
        "spec.json",
        "summary.json",
        "worker.log",
    ]
    assert (finished.progress.phase, finished.progress.step, finished.progress.total_steps) == ("training", step, step)


async def test_a_job_that_is_cancelled_in_the_queue_is_told(jobs: Jobs, runner: JobRunner) -> None:
    job = jobs.submit()
    assert jobs.registry.request_cancel(job.id)
    await runner.cancel(job.id, ended=True)
    assert [(each.id, each.state) for each in jobs.finished] == [(job.id, JobState.cancelled)]


async def test_checkpoints_are_published_as_they_come_and_change_nobodys_answers(jobs: Jobs, runner: JobRunner) -> None:
    job = jobs.submit(max_steps=6, publish_checkpoints=True)
    runner.wake()
    first = await jobs.heard(job, "checkpoint", lambda data: data["step"] == 2)
    assert first["version"] == "de-checkpoints@1"
    assert first["loss"] > 0
    # Who asks for the task, or by the text, is not answered by a model that is half trained.
    early = jobs.registry.version("de-checkpoints", 1)
    assert (early.lineage.job, early.lineage.step) == (job.id, 2)
    assert jobs.registry.latest_for_task("translation") is None
    assert jobs.registry.described_after(0, PROFILE_FILE) == []
    finished = await jobs.over()
    assert (finished.state, finished.version) == (JobState.succeeded, "de@1")
    assert [version.ref for version in jobs.published] == ["de-checkpoints@1", "de-checkpoints@2", "de@1"]
    weights = [read_adapter(version.path)[1] for version in jobs.published]
    assert not all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert json.loads((early.path / "graft.json").read_text())["rank"] == 4
    assert not list((job.folder / "snapshots").iterdir())


async def test_a_checkpoint_whose_server_was_killed_is_published_by_the_next(jobs: Jobs, host: PluginHost) -> None:
    job = jobs.submit(epochs=500, checkpoint_every=1000, publish_checkpoints=True)
    first = jobs.runner()
    await first.start()
    await jobs.heard(job, "metrics", lambda data: data["step"] >= 1)
    await first.stop()
    [version] = [version.ref for version in jobs.published]
    # As if the server had not come to hear of it.
    snapshot = job.folder / "snapshots" / "00000001"
    shutil.copytree(jobs.registry.resolve(version).path, snapshot)
    second = jobs.runner()
    await second.start()
    told = await jobs.heard(job, "checkpoint", lambda data: data["step"] == 1)
    assert told["version"] == "de-checkpoints@2"
    await second.stop()


async def test_the_loss_is_watched_on_rows_of_another_dataset(jobs: Jobs, runner: JobRunner) -> None:
    watched = jobs.submit(ROWS.splitlines(keepends=True)[0], adapter="other", max_steps=1)
    job = jobs.submit(max_steps=2, eval_every=1, validation_dataset=watched.dataset)
    jobs.registry.request_cancel(watched.id)
    with pytest.raises(ConflictError, match=job.id):
        jobs.registry.delete_dataset(watched.dataset)
    runner.wake()
    finished = await jobs.over()
    assert (finished.id, finished.state) == (job.id, JobState.succeeded)
    assert finished.progress.eval_loss is not None
    summary = json.loads((job.folder / "summary.json").read_text())
    assert (summary["train_rows"], summary["validation_rows"]) == (32, 1)


async def test_a_database_that_goes_away_and_comes_back_costs_no_job(
    host: PluginHost, base: BaseModel, tmp_path: Path
) -> None:
    with postgresql() as server:
        registry = Registry.open(tmp_path / "data", server.new_database())
        jobs = Jobs(registry, host, base, tmp_path / "data")
        runner = jobs.runner()
        await runner.start()
        job = jobs.submit(epochs=40, checkpoint_every=10)
        runner.wake()
        await jobs.heard(job, "metrics", lambda data: data["step"] >= 1)
        before = worker().pid
        await asyncio.to_thread(server.stop)
        # Somebody looks at the queue meanwhile, as the arrival of a job does.
        runner.wake()
        await asyncio.sleep(3)
        assert worker().pid == before
        await asyncio.to_thread(server.start)
        finished = await jobs.over()
        assert (finished.state, finished.version, finished.attempts) == (JobState.succeeded, "de@1", 1)
        # The queue goes on too.
        after = jobs.submit(adapter="de2", max_steps=2)
        runner.wake()
        assert (await jobs.over()).id == after.id
        # And a server that is stopped in an outage does not wait for its end.
        await asyncio.to_thread(server.stop)
        runner.wake()
        await asyncio.wait_for(runner.stop(), timeout=30)
        registry.close()
        await asyncio.to_thread(server.start)


async def test_a_full_disk_does_not_end_the_queue(
    jobs: Jobs, runner: JobRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, asked = jobs.registry.claim_job, []

    def full_once(**options: Any) -> JobRecord | None:
        asked.append(options)
        if len(asked) == 1:
            raise StorageFullError("registry.db")
        return claim(**options)

    monkeypatch.setattr(jobs.registry, "claim_job", full_once)
    job = jobs.submit(max_steps=2)
    runner.wake()
    await until(lambda: len(asked) == 1)
    runner.wake()
    assert (await jobs.over()).id == job.id


async def test_a_job_fetches_its_dataset_and_outlasts_an_object_store_that_is_away(
    host: PluginHost, base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.open(tmp_path / "data", None, f"memory://{tmp_path.name}")
    jobs = Jobs(registry, host, base, tmp_path / "data")
    job = jobs.submit(max_steps=2)
    shutil.rmtree(registry.dataset(job.dataset).path)
    put, refused = ObjectStore.put, []

    def away(self: ObjectStore, *arguments: Any) -> None:
        if len(refused) < 2:
            refused.append(arguments)
            raise StoreUnavailableError("memory://", "away")
        put(self, *arguments)

    monkeypatch.setattr(ObjectStore, "put", away)
    runner = jobs.runner()
    await runner.start()
    assert (await jobs.over()).state is JobState.succeeded
    await runner.stop()
    assert len(refused) == 2
    [version] = jobs.published
    shutil.rmtree(version.path)
    with registry.files(version) as folder:
        read_adapter(folder)
    registry.close()


async def test_a_stopped_server_queues_its_job_again(jobs: Jobs) -> None:
    job = jobs.submit(epochs=500, checkpoint_every=1000)
    first = jobs.runner()
    await first.start()
    await jobs.heard(job, "metrics", lambda data: data["step"] >= 1)
    await first.stop()
    assert jobs.registry.job(job.id).state is JobState.queued
    assert list((job.folder / "checkpoints").iterdir())
    assert jobs.finished == []
    assert workers() == []


async def test_a_failed_evaluation_is_tried_again_without_training(jobs: Jobs, runner: JobRunner) -> None:
    works = jobs.evaluate

    async def fails(*arguments: Any) -> EvaluationSummary:
        await works(*arguments)
        raise RuntimeError("the engine is not running")

    jobs.evaluate = fails
    job = jobs.submit(max_steps=2)
    runner.wake()
    failed = await jobs.over()
    assert failed.state is JobState.failed
    assert failed.error == "the evaluation failed: the engine is not running; resume the job to try it again"
    assert (failed.progress.step, failed.progress.total_steps) == (2, 2)
    made = (job.folder / RESULT_FOLDER / "adapter_model.safetensors").stat().st_mtime_ns
    jobs.evaluate = works
    jobs.registry.resume_job(job.id)
    runner.wake()
    finished = await jobs.over()
    assert finished.state is JobState.succeeded
    assert (finished.progress.step, finished.progress.total_steps) == (2, 2)
    assert (job.folder / RESULT_FOLDER / "adapter_model.safetensors").stat().st_mtime_ns == made


async def test_bad_rows_fail_the_job_unless_they_are_skipped(jobs: Jobs, runner: JobRunner) -> None:
    bad = ROWS + '{"source": "only"}\n'
    jobs.submit(bad)
    runner.wake()
    failed = await jobs.over()
    assert failed.state is JobState.failed
    assert failed.error is not None
    assert "rows.jsonl:41" in failed.error
    # The same files are the same dataset, so these differ.
    job = jobs.submit(bad + "\n", bad_rows=1, max_steps=1)
    runner.wake()
    assert await jobs.heard(job, "log", lambda data: data["message"] == "1 bad rows were skipped")
    assert (await jobs.over()).state is JobState.succeeded


async def test_rows_that_can_not_be_split_fail_the_job(jobs: Jobs, runner: JobRunner) -> None:
    jobs.submit(ALIKE)
    runner.wake()
    failed = await jobs.over()
    assert failed.error is not None
    assert "no row is left to hold out for the evaluation: the 40 examples are too alike" in failed.error


async def test_options_that_do_not_fit_the_model_fail_with_a_sentence(jobs: Jobs, runner: JobRunner) -> None:
    jobs.submit(target_modules="q_pro")
    runner.wake()
    failed = await jobs.over()
    assert failed.error == "target_modules: the base model has no linear module 'q_pro'; did you mean 'q_proj'?"


async def test_a_worker_by_hand(jobs: Jobs, runner: JobRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit codes, and a stdout that carries nothing but JSON lines."""
    monkeypatch.setattr("graft_server.training.runner._tidy", lambda folder: None)
    job = jobs.submit(max_steps=1)
    runner.wake()
    await jobs.over()
    command = [sys.executable, "-m", "graft_server.training.worker", str(job.folder)]
    again = await asyncio.to_thread(subprocess.run, command, capture_output=True, input="", text=True)
    assert again.returncode == DONE
    assert [json.loads(line)["kind"] for line in again.stdout.splitlines()] == ["done"]
    (job.folder / RESULT_FOLDER).rename(job.folder / "gone")
    orphan = await asyncio.to_thread(subprocess.run, command, capture_output=True, input="", text=True)
    assert orphan.returncode == STOPPED, "the end of stdin stops it"
    (job.folder / "spec.json").write_text("{}")
    broken = await asyncio.to_thread(subprocess.run, command, capture_output=True, stdin=subprocess.DEVNULL, text=True)
    assert broken.returncode == FAILED
    assert json.loads(broken.stdout.splitlines()[-1])["kind"] == "failed"
