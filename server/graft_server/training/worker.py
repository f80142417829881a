"""The worker process of one job: ``python -m graft_server.training.worker JOB_FOLDER``.

It reads ``spec.json``, trains, and leaves ``summary.json``, ``held_out.jsonl`` and, last and in one rename,
``result/``. Its stdout carries only JSON lines (``spec.Line``); whatever libraries print goes to stderr. The line
``cancel`` on stdin, the end of stdin (the server is gone) and SIGTERM all mean: write a checkpoint and end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ValidationError

from graft_client.schemas.jobs import JobProgress
from graft_plugins.errors import UnknownNameError
from graft_plugins.manager import PluginHost
from graft_plugins.method import AdapterFault, AdapterMethod
from graft_server.base_model.device import choose_device, choose_dtype, limit_memory
from graft_server.base_model.errors import BaseModelError
from graft_server.base_model.loading import load_model, load_tokenizer
from graft_server.base_model.source import BaseModel as BaseModelOnDisk
from graft_server.plugins import server_plugins
from graft_server.training.data import DatasetError, JobData, load_job_data
from graft_server.training.options import OptionError, ResolvedOptions, resolve_options
from graft_server.training.spec import (
    CHECKPOINT_FOLDER,
    DONE,
    FAILED,
    HELD_OUT_FILE,
    LINEAGE_FILE,
    RESULT_FOLDER,
    SNAPSHOT_FOLDER,
    SPEC_FILE,
    STATE_FILE,
    STOPPED,
    SUMMARY_FILE,
    CheckpointLine,
    DoneLine,
    FailedLine,
    LogLine,
    MetricsLine,
    TrainingSpec,
    TrainingSummary,
)
from graft_server.training.trainer import Hooks, Stopped, Trainer, TrainingError
from graft_server.whole_files import whole_folder, write_whole

#: The option's values as names of torch's types.
_DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp32": "float32"}
#: Errors whose text is a sentence for the person who started the job.
_CLEAR = (TrainingError, DatasetError, AdapterFault, OptionError, BaseModelError, UnknownNameError)


class Channel:
    """JSON lines to the server, one write each."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def say(self, line: BaseModel) -> None:
        try:
            self._stream.write(line.model_dump_json() + "\n")
            self._stream.flush()
        except BrokenPipeError:
            # The server is gone; the end of stdin says so too, and ends the run with a checkpoint.
            pass


class Worker:
    """One run of one job."""

    def __init__(self, folder: Path, channel: Channel, stop: threading.Event) -> None:
        self._folder = folder
        self._channel = channel
        self._stop = stop
        self._progress = JobProgress()

    def run(self) -> int:
        """Train, or report what an earlier run of this job left; the exit code."""
        try:
            summary = self._finished() or self._train()
        except Stopped:
            return STOPPED
        except _CLEAR as error:
            return self._fail(str(error))
        except (ValidationError, OSError, ValueError) as error:
            traceback.print_exc()
            return self._fail(f"the job can't be run: {error}")
        except Exception as error:
            traceback.print_exc()
            return self._fail(f"training failed unexpectedly: {type(error).__name__}: {error}")
        self._channel.say(DoneLine(summary=summary))
        return DONE

    def _fail(self, message: str) -> int:
        self._channel.say(FailedLine(error=message))
        return FAILED

    def _finished(self) -> TrainingSummary | None:
        # result/ appears last, so everything else is there with it.
        if not (self._folder / RESULT_FOLDER).is_dir():
            return None
        return TrainingSummary.model_validate_json((self._folder / SUMMARY_FILE).read_bytes())

    def _train(self) -> TrainingSummary:
        spec = TrainingSpec.model_validate_json((self._folder / SPEC_FILE).read_bytes())
        host = PluginHost.load(only=spec.plugins, extra=server_plugins())
        task, method = host.task(spec.task), host.method(spec.method)
        options = resolve_options(task, method, spec.options)
        base = BaseModelOnDisk(**spec.base.model_dump())
        self._phase("reading data")
        data = load_job_data(
            host,
            task,
            spec.files,
            spec.format,
            options.training,
            load_tokenizer(base),
            context_length=base.context_length,
            skip_bad=spec.skip_bad,
            watch=spec.validation,
        )
        self._log_left_out(data, options)
        self._phase("loading the base model")
        trainer = self._trainer(spec, base, method, options, data)
        state = trainer.run()
        self._phase("saving")
        summary = TrainingSummary(
            train_rows=len(data.train),
            eval_rows=len(data.held_out),
            validation_rows=len(data.validation),
            bad_rows=data.bad_rows + len(data.refused),
            long_rows=data.long_rows,
            steps=state.step,
            total_steps=trainer.total_steps,
            stopped_early=state.stopped_early,
            train_seconds=state.seconds,
            train_tokens=state.tokens,
            tokens_per_second=state.tokens / state.seconds if state.seconds else 0.0,
            loss=state.loss,
            eval_loss=state.eval_loss,
            rank=method.rank(options.flat),
        )
        self._leave(spec, trainer, data, summary)
        return summary

    def _trainer(
        self,
        spec: TrainingSpec,
        base: BaseModelOnDisk,
        method: AdapterMethod,
        options: ResolvedOptions,
        data: JobData,
    ) -> Trainer:
        import torch

        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        device = choose_device(spec.device)
        limit_memory(device, spec.memory)
        dtype = choose_dtype(_DTYPES[options.training.precision], device)
        model = load_model(base, dtype=dtype, device=device)
        # PEFT writes this name into the adapter's files; a path of this machine would mean nothing elsewhere.
        model.name_or_path = base.name
        attached = method.attach(model, options.method_options, seed=options.training.seed)
        rank = method.rank(options.flat)

        def checkpointed(step: int) -> None:
            snapshot = self._folder / SNAPSHOT_FOLDER / f"{step:08d}"
            if options.training.publish_checkpoints and not snapshot.exists():
                self._write_adapter(snapshot, spec, trainer, data, rank)
            self._channel.say(CheckpointLine(step=step))

        trainer = Trainer(
            attached,
            method,
            data.train,
            data.validation,
            options.training,
            checkpoints=self._folder / CHECKPOINT_FOLDER,
            hooks=Hooks(
                progress=self._report,
                checkpoint=checkpointed,
                should_stop=self._stop.is_set,
            ),
        )
        return trainer

    def _leave(self, spec: TrainingSpec, trainer: Trainer, data: JobData, summary: TrainingSummary) -> None:
        rows = "".join(example.model_dump_json() + "\n" for example in data.held_out)
        write_whole(self._folder / HELD_OUT_FILE, rows)
        write_whole(self._folder / SUMMARY_FILE, summary.model_dump_json(indent=2))
        self._write_adapter(self._folder / RESULT_FOLDER, spec, trainer, data, summary.rank)

    def _write_adapter(self, folder: Path, spec: TrainingSpec, trainer: Trainer, data: JobData, rank: int) -> None:
        """The adapter as it is now, with all that is published with it."""
        lineage = {
            "format": 1,
            "task": spec.task,
            "method": spec.method,
            "base_model": spec.base.name,
            "base_fingerprint": spec.base.fingerprint,
            "rank": rank,
        }
        with whole_folder(folder) as result:
            trainer.save(str(result))
            # PEFT writes a model card that says nothing; the version's lineage is in the registry.
            (result / "README.md").unlink(missing_ok=True)
            (result / STATE_FILE).write_text(data.state.model_dump_json(), encoding="utf-8")
            (result / LINEAGE_FILE).write_text(json.dumps(lineage, indent=2) + "\n", encoding="utf-8")

    def _phase(self, phase: str) -> None:
        if self._stop.is_set():
            raise Stopped
        self._report(self._progress.model_copy(update={"phase": phase}))

    def _report(self, progress: JobProgress) -> None:
        self._progress = progress
        self._channel.say(MetricsLine(progress=progress))

    def _log_left_out(self, data: JobData, options: ResolvedOptions) -> None:
        counted = f"{len(data.train)} rows to train on, {len(data.held_out)} held out"
        self._channel.say(LogLine(message=counted))
        if data.bad_rows:
            self._channel.say(LogLine(message=f"{data.bad_rows} bad rows were skipped"))
        if data.refused:
            self._channel.say(LogLine(message=f"{len(data.refused)} rows were left out: {data.refused[0]}"))
        if data.long_rows:
            limit = options.training.max_length
            self._channel.say(LogLine(message=f"{data.long_rows} rows were left out: longer than {limit} tokens"))


def _watch_stdin(stop: threading.Event) -> None:
    for line in sys.stdin:
        if line.strip() == "cancel":
            break
    stop.set()


def main(arguments: list[str]) -> int:
    """Run the job in the folder that the only argument names."""
    if len(arguments) != 1:
        print("usage: python -m graft_server.training.worker JOB_FOLDER", file=sys.stderr)  # noqa: T201
        return 2
    # From here on fd 1 is stderr, also for libraries written in C.
    channel = Channel(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_watch_stdin, args=(stop,), daemon=True).start()
    code = Worker(Path(arguments[0]), channel, stop).run()
    sys.stderr.flush()
    # The thread on stdin would keep a normal exit waiting for its lock.
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
