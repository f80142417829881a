"""Datasets: uploaded files, read and validated row by row before they are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, Form, Response, UploadFile

from graft_client.schemas.common import FieldError
from graft_client.schemas.datasets import DatasetCheck, DatasetInfo
from graft_plugins.dataset import LoadedDataset, load_dataset
from graft_server.api.deps import ServicesDep
from graft_server.api.uploads import staged
from graft_server.api.views import dataset_info
from graft_server.problems import ProblemError
from graft_server.registry.records import DatasetRecord
from graft_server.services import Services
from graft_server.training.options import TrainingOptions

router = APIRouter(prefix="/api/datasets", tags=["datasets"])

_MOST_ERRORS = 50
_MOST_EXAMPLES = 3


@router.post("", status_code=201)
async def create_dataset(
    services: ServicesDep,
    task: Annotated[str, Form()],
    files: Annotated[list[UploadFile], File()],
    format_name: Annotated[str | None, Form(alias="format")] = None,
    skip_bad: Annotated[bool, Form()] = False,
) -> DatasetInfo:
    """Validate and store a dataset. Bad rows refuse it, unless ``skip_bad`` leaves them out."""
    services.host.task(task)
    async with staged(files, services.uploads) as paths:
        record = await asyncio.to_thread(store_dataset, services, task, paths, format_name, skip_bad=skip_bad)
    return dataset_info(record)


@router.post("/check")
async def check_dataset(
    services: ServicesDep,
    task: Annotated[str, Form()],
    files: Annotated[list[UploadFile], File()],
    format_name: Annotated[str | None, Form(alias="format")] = None,
) -> DatasetCheck:
    """Read files as a dataset and say what is wrong with them; nothing is stored."""
    services.host.task(task)
    async with staged(files, services.uploads) as paths:
        return await asyncio.to_thread(_check, services, task, paths, format_name)


@router.get("")
async def list_datasets(services: ServicesDep, task: str | None = None) -> list[DatasetInfo]:
    """The stored datasets, newest first; of one task with `task`."""
    if task is not None:
        services.host.task(task)
    return [dataset_info(record) for record in await asyncio.to_thread(services.registry.datasets, task)]


@router.get("/{dataset_id}")
async def show_dataset(dataset_id: str, services: ServicesDep) -> DatasetInfo:
    """One dataset."""
    return dataset_info(await asyncio.to_thread(services.registry.dataset, dataset_id))


@router.delete("/{dataset_id}", status_code=204)
async def delete_dataset(dataset_id: str, services: ServicesDep) -> Response:
    """Delete a dataset that no unfinished job uses."""
    await asyncio.to_thread(services.registry.delete_dataset, dataset_id)
    return Response(status_code=204)


def store_dataset(
    services: Services, task: str, paths: Sequence[Path], format_name: str | None, *, skip_bad: bool = False
) -> DatasetRecord:
    """Validate and store the files, which are all that is in their folder. Blocking.

    Raises:
        ProblemError: ``invalid-data``, for bad rows that are not to be skipped.
        UnknownNameError: there is no such task or format.
    """
    loaded = _load(services, task, paths, format_name)
    refuse_bad(loaded, skip_bad=skip_bad)
    return services.registry.add_dataset(
        task=task,
        format=loaded.format or "",
        rows=len(loaded.examples),
        bad_rows=len(loaded.errors),
        folder=paths[0].parent,
        order=[path.name for path in paths],
    )


def _load(services: Services, task: str, files: Sequence[Path], format_name: str | None) -> LoadedDataset:
    return load_dataset(services.host.readers, services.host.task(task), files, format_name or None)


def _check(services: Services, name: str, files: Sequence[Path], format_name: str | None) -> DatasetCheck:
    loaded = _load(services, name, files, format_name)
    task = services.host.task(name)
    defaults = TrainingOptions.model_validate(
        {key: value for key, value in task.training_defaults.items() if key in TrainingOptions.model_fields}
    )
    split = task.split(loaded.examples, test_rows=defaults.test_rows(len(loaded.examples)), seed=defaults.seed)
    return DatasetCheck(
        task=name,
        format=loaded.format,
        rows=len(loaded.examples),
        bad_rows=len(loaded.errors),
        errors=_first_errors(loaded),
        examples=[example.model_dump(mode="json") for example in loaded.examples[:_MOST_EXAMPLES]],
        train_rows=len(split.train),
        test_rows=len(split.test),
    )


def refuse_bad(loaded: LoadedDataset, *, skip_bad: bool) -> None:
    """Raises ``ProblemError`` where data can't be read, or holds bad rows that are not to be left out."""
    errors = _first_errors(loaded)
    if loaded.fatal is not None:
        raise ProblemError("invalid-data", str(loaded.fatal), errors=errors)
    bad, total = len(loaded.errors), len(loaded.errors) + len(loaded.examples)
    if not loaded.examples:
        raise ProblemError("invalid-data", f"all {total} rows are bad; first {loaded.errors[0]}", errors=errors)
    if bad and not skip_bad:
        detail = (
            f"{bad} of {total} rows are bad; first {loaded.errors[0]}; correct them, or leave them out with --skip-bad"
        )
        raise ProblemError("invalid-data", detail, errors=errors)


def _first_errors(loaded: LoadedDataset) -> list[FieldError]:
    return [FieldError(place=error.place, message=error.message) for error in loaded.errors[:_MOST_ERRORS]]
