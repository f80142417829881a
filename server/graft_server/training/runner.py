"""Runs queued jobs: claims them, starts a worker process for each, follows it, has the result measured and
published. Lives in the server's event loop; everything slow happens in the worker or in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from graft_client.schemas.adapters import EvaluationSummary
from graft_client.schemas.jobs import JobProgress, JobState
from graft_plugins.manager import PluginHost
from graft_server.base_model.source import BaseModel
from graft_server.children import background_environment
from graft_server.config import Settings
from graft_server.registry.errors import (
    CorruptArtefactError,
    LostClaimError,
    RegistryError,
    StorageFullError,
    UnavailableError,
)
from graft_server.registry.outages import Outlasting
from graft_server.registry.records import DatasetRecord, JobRecord, Lineage, VersionRecord
from graft_server.registry.registry import Registry
from graft_server.training.keeper import ClaimKeeper
from graft_server.training.sharing import CheckpointSharing
from graft_server.training.spec import (
    CHECKPOINT_FOLDER,
    DONE,
    FAILED,
    HELD_OUT_FILE,
    LINE,
    LOG_FILE,
    RESULT_FOLDER,
    SNAPSHOT_FOLDER,
    SPEC_FILE,
    STOPPED,
    BaseModelSpec,
    CheckpointLine,
    DataSpec,
    DoneLine,
    FailedLine,
    Line,
    LogLine,
    MetricsLine,
    TrainingSpec,
    TrainingSummary,
    checkpoints_of,
)
from graft_server.whole_files import write_whole

log = logging.getLogger(__name__)

#: How often a worker is started for one claim of a job before a crash is taken for its fault.
_STARTS = 3
#: Seconds between two entries of a job's figures in its history.
_PACE = 1.0
#: Seconds a worker gets to write its last checkpoint.
_GRACE = 60.0
#: Longest line of a worker, in bytes.
_LINE_LIMIT = 1 << 20

EventKind = Literal["metrics", "checkpoint", "log"]

#: Measures a finished job: its record, the result's folder, the held-out rows, and a callback with the answers that
#: are in and the answers that are wanted.
Evaluate = Callable[[JobRecord, Path, Path, Callable[[int, int], None]], Awaitable[EvaluationSummary]]


class JobFailed(Exception):  # noqa: N818 - the state that it leads to
    """The job failed; the text is one sentence for its record."""


class JobStopped(Exception):  # noqa: N818 - the state that it leads to
    """The job's worker or evaluation ended because it was asked to."""


class JobRunner:
    """See the module. ``on_published`` and ``on_finished`` are called in the event loop and must not block; a job
    trains within ``device_turn``."""

    def __init__(
        self,
        registry: Registry,
        host: PluginHost,
        base: BaseModel,
        settings: Settings,
        evaluate: Evaluate,
        on_published: Callable[[VersionRecord], None] = lambda version: None,
        on_finished: Callable[[JobRecord], None] = lambda job: None,
        device_turn: Callable[[], AbstractAsyncContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._registry = registry
        self._host = host
        self._base = base
        self._settings = settings
        self._evaluate = evaluate
        self._on_published = on_published
        self._on_finished = on_finished
        self._device_turn = device_turn
        self._woken = asyncio.Event()
        self._stopping = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._jobs: dict[str, _Run] = {}
        #: A database that is away for a while stops no worker and fails no job.
        self._ask = Outlasting(self._stopping)
        self._lease = settings.job_lease_seconds
        self._keeper = ClaimKeeper(registry, self._lease, lost=self._lose, cancelled=self._cancel)
        self._keeping: asyncio.Task[None] | None = None
        self._started_at = time.monotonic()

    async def start(self) -> None:
        """Queue again what a dead server left, and begin to work through the queue."""
        for job in await asyncio.to_thread(self._registry.recover_jobs):
            if job.state is JobState.cancelled:
                self._on_finished(job)
        await asyncio.to_thread(self._tidy_all)
        self._started_at = time.monotonic()
        self._woken.set()
        self._keeping = asyncio.create_task(self._keeper.run(), name="claims")
        self._loop_task = asyncio.create_task(self._work(), name="job-runner")

    async def stop(self) -> None:
        """Ask the workers for a last checkpoint, wait for them, and queue their jobs again."""
        self._stopping.set()
        self._woken.set()
        if self._loop_task is not None:
            await self._loop_task
        runs = list(self._jobs.values())
        for run in runs:
            run.stop()
        await asyncio.gather(*(run.task for run in runs if run.task is not None), return_exceptions=True)
        if self._keeping is not None:
            self._keeping.cancel()

    def _tidy_all(self) -> None:
        """What a server that was killed behind a job's success had no time for."""
        for result in (self._settings.data_dir / "jobs").glob(f"*/{RESULT_FOLDER}"):
            with contextlib.suppress(RegistryError):
                if self._registry.job(result.parent.name).state is JobState.succeeded:
                    _tidy(result.parent)

    def wake(self) -> None:
        """Look at the queue and at the jobs at work now: something may have changed."""
        self._woken.set()
        self._keeper.wake()

    async def cancel(self, job_id: str, *, ended: bool = False) -> None:
        """Stop a job at work; its worker keeps a last checkpoint. One that is at work on another server is stopped
        there, when that server looks at its claims. One that only waited has ``ended`` by that."""
        self._cancel(job_id)
        if ended:
            self._on_finished(await self._ask(self._registry.job, job_id))

    def _cancel(self, job_id: str) -> None:
        run = self._jobs.get(job_id)
        if run is not None and not run.cancelled:
            run.cancelled = True
            run.stop()

    def _lose(self, job_id: str) -> None:
        run = self._jobs.get(job_id)
        if run is not None:
            run.lose()

    async def _work(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            while len(self._jobs) < self._settings.max_jobs and not self._stopping.is_set():
                try:
                    job = await self._ask(self._claim)
                except UnavailableError:
                    break  # and the server is stopping
                except Exception as error:  # whatever it is, the next try may work
                    log.warning("no job can be taken from the queue: %s", error)
                    break
                if job is None:
                    break
                if (lost := self._jobs.get(job.id)) is not None and lost.task is not None:
                    # We lost it and have it again: its last worker must not write beside the next one.
                    lost.lose()
                    await asyncio.wait([lost.task])
                self._begin(job)
            # Nobody tells that a claim has run out.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), self._lease / 3)

    def _claim(self) -> JobRecord | None:
        # Asked anew at each try: the tries before may have found the database away.
        return self._registry.claim_job(lease=self._lease, take_over=self._may_take_over())

    def _may_take_over(self) -> bool:
        """Whether a claim that has run out means that its server is gone. After an outage of the database it does not,
        until every server had the time to renew."""
        return time.monotonic() - max(self._started_at, self._ask.failed_at) > self._lease

    def _begin(self, job: JobRecord) -> None:
        assert job.claim is not None
        self._keeper.add(job.claim)
        run = self._jobs[job.id] = _Run(self._registry, job, self._ask, self._publish_checkpoint)
        run.task = asyncio.create_task(self._run(run), name=f"job-{job.id}")

    # One job

    async def _run(self, run: _Run) -> None:
        job = run.job
        try:
            async with self._device_turn():
                summary = await self._train(run)
            evaluation = await self._measure(run, summary)
            version = await self._publish(job, summary, evaluation)
        except JobStopped:
            state = JobState.cancelled if run.cancelled else JobState.queued
            await self._end(job, state)
        except LostClaimError as error:
            log.warning("%s; another server goes on with it", error)
        except JobFailed as error:
            await self._end(job, JobState.failed, str(error))
        except Exception as error:
            log.exception("job %s failed", job.id)
            await self._end(job, JobState.failed, f"the job failed unexpectedly: {error}")
        else:
            finished = await self._ask(self._registry.job, job.id)
            self._on_published(version)
            self._on_finished(finished)
            await asyncio.to_thread(self._registry.checkpoints.drop, job)
            await asyncio.to_thread(_tidy, job.folder)
        finally:
            del self._jobs[job.id]
            if job.claim is not None:
                self._keeper.drop(job.claim)
            self._woken.set()

    async def _end(self, job: JobRecord, state: JobState, error: str | None = None) -> None:
        try:
            ended = await self._ask(self._registry.update_job, job.id, state=state, error=error, claim=job.claim)
        except LostClaimError as lost:
            log.warning("%s; another server goes on with it", lost)
            return
        except RegistryError:
            log.exception("job %s can't be set to %s", job.id, state)
            return
        if state.finished:
            self._on_finished(ended)

    async def _train(self, run: _Run) -> TrainingSummary:
        """Run the worker until it is done, again after a crash: it goes on from its last checkpoint."""
        rows, watched = await self._ask(self._datasets, run.job)
        with ExitStack() as held:
            try:
                for dataset in filter(None, (rows, watched)):
                    await self._ask(self._hold, held, dataset)
            except (CorruptArtefactError, StorageFullError) as error:
                raise JobFailed(f"the dataset can't be read: {error}; resume the job to try it again") from error
            await self._ask(self._write_spec, run.job, rows, watched)
            await self._fetch_checkpoint(run)
            # Of a worker whose server was killed before it could be told of them.
            for snapshot in _snapshots(run.job):
                await run.checkpoint(int(snapshot.name), known=False)
            return await self._work_through(run)

    async def _fetch_checkpoint(self, run: _Run) -> None:
        """Have the last checkpoint of a job that was at work on another server since it was here."""
        folder = run.job.folder
        if (folder / RESULT_FOLDER).is_dir():
            return
        try:
            found = await self._ask(self._registry.checkpoints.fetch, run.job, folder / CHECKPOINT_FOLDER)
        except StorageFullError as error:
            raise JobFailed(f"the last checkpoint can't be fetched: {error}; resume the job to try it again") from error
        if found is not None:
            await run.event("log", {"message": f"the training goes on from checkpoint {found} of another server"})

    def _datasets(self, job: JobRecord) -> tuple[DatasetRecord, DatasetRecord | None]:
        """What a job trains on, and what it is watched on if that is a dataset of its own."""
        watched = job.options.get("validation_dataset")
        return self._registry.dataset(job.dataset), None if watched is None else self._registry.dataset(watched)

    def _hold(self, held: ExitStack, dataset: DatasetRecord) -> None:
        held.enter_context(self._registry.files(dataset))

    async def _work_through(self, run: _Run) -> TrainingSummary:
        for start in range(1, _STARTS + 1):
            code = await run.work()
            if code == DONE and run.summary is not None:
                return run.summary
            if code == STOPPED:
                raise JobStopped
            if code == FAILED:
                raise JobFailed(run.error or f"the worker failed; see {run.job.folder / LOG_FILE}")
            if code >= 0:
                raise JobFailed(f"the worker ended with exit code {code}; see {run.job.folder / LOG_FILE}")
            if run.stopping:
                raise JobStopped
            name = signal.Signals(-code).name
            await run.event("log", {"message": f"the worker was ended by {name} (start {start} of {_STARTS})"})
        raise JobFailed(
            f"the worker was ended by {name} {_STARTS} times, the last time at step {run.progress.step}; if the "
            "machine ran out of memory, lower batch_size or max_length and resume the job"
        )

    def _write_spec(self, job: JobRecord, dataset: DatasetRecord, watched: DatasetRecord | None) -> None:
        base = self._base
        spec = TrainingSpec(
            job=job.id,
            base=BaseModelSpec(
                name=base.name,
                path=base.path,
                fingerprint=base.fingerprint,
                architecture=base.architecture,
                context_length=base.context_length,
                parameters=base.parameters,
            ),
            task=job.task,
            method=job.method,
            files=[dataset.path / name for name, _, _ in dataset.files],
            format=dataset.format,
            # A dataset is stored with bad rows only where its owner said to go on without them.
            skip_bad=dataset.bad_rows > 0,
            validation=None if watched is None else _data(watched),
            options=job.options,
            device=self._settings.training_device,
            memory=self._settings.training_memory,
            plugins=self._settings.plugins,
        )
        job.folder.mkdir(parents=True, exist_ok=True)
        write_whole(job.folder / SPEC_FILE, spec.model_dump_json(indent=2))

    async def _measure(self, run: _Run, summary: TrainingSummary) -> EvaluationSummary:
        job = run.job
        if run.stopping:
            raise JobStopped
        await self._ask(self._registry.update_job, job.id, state=JobState.evaluating, claim=job.claim)
        if run.stopping:  # meanwhile
            raise JobStopped
        measuring = asyncio.ensure_future(
            self._evaluate(job, job.folder / RESULT_FOLDER, job.folder / HELD_OUT_FILE, run.evaluated)
        )
        run.evaluation = measuring
        try:
            evaluation = await measuring
        except asyncio.CancelledError:
            if run.stopping:
                raise JobStopped from None
            raise
        except Exception as error:
            # While the server goes down the engine goes too; the next one measures again.
            if run.stopping:
                raise JobStopped from error
            log.exception("job %s can't be evaluated", job.id)
            raise JobFailed(f"the evaluation failed: {error}; resume the job to try it again") from error
        finally:
            run.evaluation = None
            await run.flush()
            # The evaluation counted its answers; what stays is how far the training came.
            progress = _trained(run.progress, summary)
            await self._ask(self._registry.update_job, job.id, progress=progress, claim=job.claim)
        return evaluation

    async def _publish(self, job: JobRecord, summary: TrainingSummary, evaluation: EvaluationSummary) -> VersionRecord:
        lineage = replace(
            self._lineage(job),
            rank=summary.rank,
            train_rows=summary.train_rows,
            train_seconds=summary.train_seconds,
            train_tokens=summary.train_tokens,
            evaluation=evaluation,
        )
        figures = {"train_seconds": summary.train_seconds, "train_tokens": summary.train_tokens}
        try:
            return await self._ask(
                self._registry.publish,
                job.adapter,
                job.folder / RESULT_FOLDER,
                lineage,
                job_id=job.id,
                job_update=figures,
                claim=job.claim,
            )
        except LostClaimError:
            raise
        except RegistryError as error:
            raise JobFailed(f"the version can't be published: {error}; resume the job to try it again") from error

    async def _publish_checkpoint(self, job: JobRecord, step: int) -> str | None:
        """Publish what the worker left of a checkpoint, if it did; the version's name."""
        folder = job.folder / SNAPSHOT_FOLDER / f"{step:08d}"
        if not folder.is_dir():
            return None
        lineage = replace(self._lineage(job), step=step, rank=self._host.method(job.method).rank(job.options))
        name = checkpoints_of(job.adapter)
        version = await self._ask(self._registry.publish, name, folder, lineage, claim=job.claim)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        self._on_published(version)
        return version.ref

    def _lineage(self, job: JobRecord) -> Lineage:
        """What is known of a version before the training is over."""
        plugin = self._host.provider("task", job.task)
        return Lineage(
            task=job.task,
            method=job.method,
            base_model=self._base.name,
            base_fingerprint=self._base.fingerprint,
            plugin=plugin.name,
            plugin_version=plugin.version,
            dataset=job.dataset,
            job=job.id,
            seed=job.options.get("seed"),
            options=job.options,
        )


def _data(dataset: DatasetRecord) -> DataSpec:
    return DataSpec(
        files=[dataset.path / name for name, _, _ in dataset.files],
        format=dataset.format,
        skip_bad=dataset.bad_rows > 0,
    )


def _tidy(folder: Path) -> None:
    """Of a job that has succeeded the version has the files; what is left tells how it went."""
    for name in (CHECKPOINT_FOLDER, RESULT_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / HELD_OUT_FILE).unlink(missing_ok=True)


def _snapshots(job: JobRecord) -> list[Path]:
    """The whole ones, the oldest first."""
    folder = job.folder / SNAPSHOT_FOLDER
    return sorted(path for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


def _trained(progress: JobProgress, summary: TrainingSummary) -> JobProgress:
    """Where a job stands whose training is over."""
    return progress.model_copy(
        update={
            "phase": "training",
            "step": summary.steps,
            "total_steps": summary.total_steps,
            "loss": summary.loss,
            "eval_loss": summary.eval_loss,
            "tokens": summary.train_tokens,
            "tokens_per_second": summary.tokens_per_second,
            "eta_seconds": None,
        }
    )


class _Run:
    """One job at work: its worker or its evaluation, and what is known of it."""

    def __init__(
        self,
        registry: Registry,
        job: JobRecord,
        ask: Outlasting,
        publish_checkpoint: Callable[[JobRecord, int], Awaitable[str | None]],
    ) -> None:
        self.job = job
        self.task: asyncio.Task[None] | None = None
        self.evaluation: asyncio.Future[EvaluationSummary] | None = None
        # Asked for between the claim and now, or before the server was started again.
        self.cancelled = job.cancel_requested
        self._stop = asyncio.Event()
        if self.cancelled:
            self._stop.set()
        self.progress = job.progress
        self.summary: TrainingSummary | None = None
        self.error: str | None = None
        self._registry = registry
        self._ask = ask
        self._publish_checkpoint = publish_checkpoint
        self._process: asyncio.subprocess.Process | None = None
        self._noted = 0.0
        self._notes: set[asyncio.Task[None]] = set()
        self._sharing = CheckpointSharing(registry, job)

    @property
    def stopping(self) -> bool:
        """Whether the job was asked to end."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask the worker to write a checkpoint and end, or end the evaluation."""
        self._stop.set()
        if self.evaluation is not None:
            self.evaluation.cancel()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._notes.add(asyncio.create_task(self._insist(self._process)))

    def lose(self) -> None:
        """End the worker or the evaluation at once: the job is another server's now."""
        self._stop.set()
        if self.evaluation is not None:
            self.evaluation.cancel()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _insist(self, process: asyncio.subprocess.Process) -> None:
        try:
            await asyncio.wait_for(process.wait(), _GRACE)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def work(self) -> int:
        """Start the worker and follow it to its end; its exit code, negative for a signal."""
        if self._stop.is_set():
            return STOPPED
        with (self.job.folder / LOG_FILE).open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "graft_server.training.worker",
                str(self.job.folder),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=_LINE_LIMIT,
                env=background_environment(),
                # Ctrl-C in the server's terminal is the server's to handle.
                start_new_session=True,
            )
        self._process = process
        try:
            if self._stop.is_set():
                self.stop()
            assert process.stdout is not None
            async for line in process.stdout:
                await self._heard(line)
            return await process.wait()
        finally:
            self._process = None
            if process.returncode is None:
                process.kill()
            await self.flush()

    async def _heard(self, line: bytes) -> None:
        try:
            message: Line = LINE.validate_json(line)
        except ValidationError:
            log.warning("job %s: the worker said %r", self.job.id, line[:200])
            return
        match message:
            case MetricsLine(progress=progress):
                changed = progress.phase != self.progress.phase
                self.progress = progress
                if changed or progress.step == progress.total_steps or time.monotonic() - self._noted >= _PACE:
                    await self._note()
            case CheckpointLine(step=step):
                await self.checkpoint(step)
                # Behind the version of the step, which whoever goes on from here would not publish any more.
                self._sharing.share(step)
            case LogLine(message=text):
                await self.event("log", {"message": text})
            case DoneLine(summary=summary):
                self.summary = summary
            case FailedLine(error=error):
                self.error = error

    async def checkpoint(self, step: int, *, known: bool = True) -> None:
        """Note a checkpoint, with the figures of its step where they are ``known``, and as what it was published."""
        data: dict[str, Any] = {"step": step}
        if known:
            data |= {"loss": self.progress.loss, "eval_loss": self.progress.eval_loss}
        try:
            version = await self._publish_checkpoint(self.job, step)
        except RegistryError as error:
            # The training itself loses nothing by it.
            await self.event("log", {"message": f"the checkpoint of step {step} can't be published: {error}"})
        else:
            data |= {"version": version} if version is not None else {}
        await self.event("checkpoint", data)

    def evaluated(self, done: int, total: int) -> None:
        """Note how far the evaluation is; called from the event loop, often."""
        self.progress = self.progress.model_copy(
            update={"phase": "evaluating", "step": done, "total_steps": total, "eta_seconds": None}
        )
        if done == total or time.monotonic() - self._noted >= _PACE:
            self._noted = time.monotonic()
            note = asyncio.create_task(self._note())
            self._notes.add(note)
            note.add_done_callback(self._notes.discard)

    async def _note(self) -> None:
        """Put the figures into the job's record and its history."""
        self._noted = time.monotonic()
        progress: JobProgress = self.progress
        await self._ask(self._registry.update_job, self.job.id, progress=progress, claim=self.job.claim)
        await self.event("metrics", progress.model_dump(mode="json"))

    async def event(self, kind: EventKind, data: dict[str, Any]) -> None:
        """Append to the job's history."""
        await self._ask(self._registry.add_event, self.job.id, kind, data, claim=self.job.claim)

    async def flush(self) -> None:
        """Wait until everything that was to be noted is, and the last checkpoint is where others find it."""
        await self._sharing.flush()
        await asyncio.gather(*self._notes, return_exceptions=True)
        self._notes.clear()
