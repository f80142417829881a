"""Evaluations: an adapter on a dataset's rows, beside the base model or another adapter, with live progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from graft_client.schemas.adapters import EvaluationSummary
from graft_client.schemas.predict import EvaluationEvent, EvaluationRequest
from graft_plugins.dataset import load_dataset
from graft_plugins.task import AnyTask
from graft_server.api.deps import ServicesDep, require_engine
from graft_server.api.problems import any_problem, problem_document
from graft_server.api.streaming import NDJSON, StreamResponse, ndjson
from graft_server.problems import ProblemError
from graft_server.registry.reading import with_files
from graft_server.registry.records import Lineage
from graft_server.routing.resolver import Route
from graft_server.services import Services
from graft_server.serving.convert import adapter_source
from graft_server.serving.evaluator import Subject
from graft_server.training.options import TrainingOptions

router = APIRouter(prefix="/api/evaluations", tags=["evaluations"])


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is measured on which rows."""

    task: AnyTask
    examples: list[Any]
    route: Route
    against: Route | None


@router.post("", response_class=StreamingResponse)
async def evaluate(body: EvaluationRequest, services: ServicesDep) -> StreamResponse:
    """NDJSON lines of progress; the last one has the summary.

    On the dataset an adapter was trained with, only the rows that were held out are used.
    """
    require_engine(services)
    evaluation = await with_files(services.registry, prepare, services, body)
    return StreamResponse(ndjson(lines(services, evaluation)), media_type=NDJSON)


async def lines(services: Services, evaluation: Evaluation) -> AsyncGenerator[EvaluationEvent]:
    """Progress, then the summary or a problem. Closing it ends the work."""
    against = evaluation.against
    names = {"adapter": evaluation.route.ref, "against": against.ref if against else None}
    progress = EvaluationEvent(done=0, total=len(evaluation.examples) * (2 if against else 1), **names)
    changed = asyncio.Event()
    changed.set()

    def on_progress(done: int, total: int) -> None:
        nonlocal progress
        progress = progress.model_copy(update={"done": done, "total": total})
        changed.set()

    work = asyncio.create_task(_measure(services, evaluation, on_progress))
    work.add_done_callback(lambda _: changed.set())
    try:
        while not work.done():
            await changed.wait()
            changed.clear()
            # Lines are written as fast as they are read; answers between two lines are counted together.
            if not work.done():
                yield progress
        try:
            yield progress.model_copy(update={"summary": work.result()})
        except Exception as error:
            yield progress.model_copy(update={"problem": problem_document(any_problem(error))})
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def _measure(services: Services, evaluation: Evaluation, on_progress: Any) -> EvaluationSummary:
    route, against = evaluation.route, evaluation.against
    subjects = {"adapter": Subject(adapter_source(route.version), route.state)}
    if against is not None:
        # The base model is asked in the adapter's own words: with its catalogue, for instance.
        state = against.state if against.version else route.state
        subjects["against"] = Subject(adapter_source(against.version), state)
    evaluator = services.evaluator
    reports = await evaluator.measure(evaluation.task, evaluation.examples, subjects, on_progress)
    return EvaluationSummary(
        adapter=reports["adapter"],
        base=reports.get("against"),
        baselines=await evaluator.baselines(evaluation.task, evaluation.examples, route.state),
    )


def prepare(services: Services, body: EvaluationRequest) -> Evaluation:
    """What a request asks for. Blocking.

    Raises:
        NotFetchedError: files have to be fetched first.
        UnknownError: there is no such adapter, version or dataset.
        ProblemError: the dataset is of another task.
    """
    dataset = services.registry.dataset(body.dataset)
    task_name = body.task or (dataset.task if services.is_base(body.adapter) else None)
    route = services.resolver.resolve(body.adapter, task_name)
    task = route.task
    if dataset.task != task.name:
        raise ProblemError(
            "conflict", f"dataset {dataset.id!r} is of task {dataset.task!r}, {route.ref} serves {task.name!r}"
        )
    against = services.resolver.resolve(body.against, task.name) if body.against else None
    with services.registry.files(dataset, wait=False) as folder:
        files = [folder / name for name, _, _ in dataset.files]
        loaded = load_dataset(services.host.readers, task, files, dataset.format)
    if loaded.fatal is not None:
        raise ProblemError("invalid-data", f"dataset {dataset.id!r} can't be read: {loaded.fatal}")
    examples = loaded.examples
    trained = [
        each.version.lineage
        for each in (route, against)
        if each is not None and each.version is not None and each.version.lineage.dataset == dataset.id
    ]
    if trained:
        # Each was trained on rows of its own where their options differ.
        examples, *others = (_held_out(task, loaded.examples, lineage) for lineage in trained)
        for other in others:
            new = {example.model_dump_json() for example in other}
            examples = [example for example in examples if example.model_dump_json() in new]
        if not examples and others:
            detail = f"no row of dataset {dataset.id!r} is new to all that is measured"
            raise ProblemError("invalid-data", f"{detail}: take another one")
    return Evaluation(task, examples[: body.limit], route, against)


def _held_out(task: AnyTask, examples: Sequence[Any], lineage: Lineage) -> list[Any]:
    """The rows of its dataset that a version was not trained on."""
    known = {key: value for key, value in lineage.options.items() if key in TrainingOptions.model_fields}
    options = TrainingOptions.model_validate(known)
    return task.split(examples, test_rows=options.test_rows(len(examples)), seed=options.seed).test
