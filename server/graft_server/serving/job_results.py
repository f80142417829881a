"""Measures what a training job made, before it is published: beside the base model, on the held-out rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from graft_client.schemas.adapters import EvaluationSummary
from graft_plugins.manager import PluginHost
from graft_plugins.task import AnyTask
from graft_server.engine.base import AdapterSource
from graft_server.registry.records import JobRecord
from graft_server.serving.evaluator import Evaluator, unpublished_source


@dataclass(frozen=True, slots=True)
class _Result:
    """A job's result folder and held-out rows, read."""

    task: AnyTask
    state: BaseModel
    examples: list[Any]
    source: AdapterSource


class JobResults:
    """What ``JobRunner`` calls to have a result measured."""

    def __init__(self, host: PluginHost, evaluator: Evaluator) -> None:
        self._host = host
        self._evaluator = evaluator

    async def evaluate(
        self, job: JobRecord, folder: Path, held_out: Path, on_progress: Callable[[int, int], None]
    ) -> EvaluationSummary:
        """Base and adapter on the rows of ``held_out``, a file with one example a line.

        Raises:
            ProblemError: nothing could be measured, or a request failed.
        """
        result = await asyncio.to_thread(self._read, job, folder, held_out)
        return await self._evaluator.compare_with_base(
            result.task, result.examples, result.state, result.source, on_progress
        )

    def _read(self, job: JobRecord, folder: Path, held_out: Path) -> _Result:
        task = self._host.task(job.task)
        config = json.loads((folder / "adapter_config.json").read_bytes())
        with held_out.open(encoding="utf-8") as lines:
            examples = [task.example_model.model_validate_json(line) for line in lines]
        return _Result(
            task=task,
            state=task.state_model.model_validate_json((folder / "task_state.json").read_bytes()),
            examples=examples,
            source=unpublished_source(
                ref=f"{job.adapter}@job-{job.id}",
                path=str(folder),
                method=job.method,
                rank=self._host.method(job.method).rank(config),
            ),
        )
