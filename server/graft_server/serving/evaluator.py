"""Measures adapters and the base model with a task's own metrics, through the same way as any request.

All rows of all subjects are asked together, so they share batches, in the background: people go first.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from graft_client.schemas.adapters import EvaluationSummary
from graft_client.schemas.common import MetricReport
from graft_plugins.task import AnyTask, Report
from graft_server.engine.base import AdapterSource, Engine
from graft_server.problems import ProblemError
from graft_server.routing.resolver import Route
from graft_server.serving.pipeline import Plan, plan_typed
from graft_server.serving.predictor import Answer, Predictor, Terms

log = logging.getLogger(__name__)

#: Called with the answers that are in and the answers that are wanted.
OnProgress = Callable[[int, int], None]

#: Problems of one row, not of the evaluation: the row is left out for every subject.
_ROW_PROBLEMS = frozenset({"prompt-too-long", "invalid-request"})

#: Engine ids of results that are not published yet, far above those that the registry counts out.
_unpublished_ids = itertools.count(2**31)


def unpublished_source(*, ref: str, path: str, method: str, rank: int) -> AdapterSource:
    """An adapter folder that is in no registry, under an engine id that nothing else ever has in this process."""
    return AdapterSource(ref=ref, engine_id=next(_unpublished_ids), path=path, method=method, rank=rank)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured. ``source`` is ``None`` for the base model."""

    source: AdapterSource | None
    state: BaseModel


class Evaluator:
    """Runs held-out rows through the predictor, at most ``concurrency`` at a time of all that is measured."""

    def __init__(self, predictor: Predictor, engine: Engine, *, concurrency: int = 32) -> None:
        self._predictor = predictor
        self._engine = engine
        self._concurrency = concurrency
        # No row has a deadline: how long it waits is the other traffic's doing. One that waits for its caller's limit
        # keeps none of others from being asked.
        self._terms = Terms(background=True, turn=asyncio.Semaphore(concurrency))

    async def compare_with_base(
        self,
        task: AnyTask,
        examples: Sequence[Any],
        state: BaseModel,
        source: AdapterSource,
        on_progress: OnProgress | None = None,
    ) -> EvaluationSummary:
        """An adapter that is not published yet, the base model and the task's baselines on the same rows.

        Raises:
            ProblemError: see ``measure``.
        """
        subjects = {"adapter": Subject(source, state), "base": Subject(None, state)}
        try:
            reports = await self.measure(task, examples, subjects, on_progress)
        finally:
            # Nothing will ask under this id again.
            await self._engine.unload(source.engine_id)
        return EvaluationSummary(
            adapter=reports["adapter"],
            base=reports["base"],
            baselines=await self.baselines(task, examples, state),
        )

    async def measure(
        self,
        task: AnyTask,
        examples: Sequence[Any],
        subjects: Mapping[str, Subject],
        on_progress: OnProgress | None = None,
    ) -> dict[str, MetricReport]:
        """A report a subject, all over the same rows.

        Rows that can't be asked (too long for the context, refused by the task) are left out for all of them.

        Raises:
            ProblemError: no row could be asked, or a request failed for another reason.
        """
        total = len(examples) * len(subjects)
        done = 0
        responses: dict[str, list[BaseModel | None]] = {name: [None] * len(examples) for name in subjects}
        refused: dict[int, ProblemError] = {}

        left = itertools.product(range(len(examples)), subjects)

        async def work() -> None:
            nonlocal done
            for index, name in left:
                try:
                    responses[name][index] = await self._ask(task, examples[index], subjects[name])
                except ProblemError as error:
                    if error.code not in _ROW_PROBLEMS:
                        raise
                    refused[index] = error
                done += 1
                if on_progress is not None:
                    on_progress(done, total)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, total)):
                    group.create_task(work())
        except* ProblemError as errors:
            raise _first(errors) from None
        kept = [index for index in range(len(examples)) if index not in refused]
        if not kept:
            reason = next(iter(refused.values())).detail if refused else "there are no rows"
            raise ProblemError("invalid-data", f"nothing could be measured: {reason}")
        if refused:
            log.warning("%d of %d rows left out of the evaluation", len(refused), len(examples))
        return {
            name: await asyncio.to_thread(
                _report, task, [(examples[index], responses[name][index]) for index in kept], subject.state
            )
            for name, subject in subjects.items()
        }

    async def baselines(self, task: AnyTask, examples: Sequence[Any], state: BaseModel) -> dict[str, MetricReport]:
        """The task's simple baselines on the same rows."""
        reports = await asyncio.to_thread(task.baselines, examples, state)
        return {name: _as_schema(report) for name, report in reports.items()}

    async def _ask(self, task: AnyTask, example: Any, subject: Subject) -> BaseModel:
        route = Route(task=task, state=subject.state)
        plan = await asyncio.to_thread(
            lambda: plan_typed(route, task.request_for(example, subject.state)),
        )
        answer = await self._answer(plan, subject.source)
        if answer.parsed.response is None:
            raise RuntimeError("a typed request was answered without a typed response")
        return answer.parsed.response

    async def _answer(self, plan: Plan, source: AdapterSource | None) -> Answer:
        """One row's answer; where the queue is full it is asked again later, for a job must not fail for that."""
        while True:
            try:
                return await self._predictor.answer(plan, self._terms, source=source, observed=False)
            except ProblemError as error:
                if error.code != "overloaded":
                    raise
                await asyncio.sleep(error.retry_after or 1.0)


def _report(task: AnyTask, pairs: Sequence[tuple[Any, Any]], state: BaseModel) -> MetricReport:
    return _as_schema(task.evaluate(pairs, state))


def _as_schema(report: Report) -> MetricReport:
    return MetricReport.model_validate(report.model_dump())


def _first(errors: BaseExceptionGroup[ProblemError]) -> ProblemError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, ProblemError):
        raise error
    return error
