"""From what OpenAI's service is asked for a fine-tuning job to a dataset and options of ours. Blocking."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

from graft_client.schemas.jobs import JobPlan
from graft_client.schemas.openai_tuning import FineTuningCreate
from graft_server.api.datasets import store_dataset
from graft_server.api.jobs import check_plan
from graft_server.problems import ProblemError
from graft_server.registry.adapters import check_name
from graft_server.registry.errors import InvalidNameError
from graft_server.registry.records import DatasetRecord, JobRecord
from graft_server.registry.visibility import visible
from graft_server.services import Services
from graft_server.training.options import resolve_options
from graft_server.training.spec import checkpoints_of


def create_tuning(services: Services, body: FineTuningCreate) -> JobRecord:
    """Queue the job, with a document of what was asked for. Whatever could only fail later is refused here.

    Raises:
        ProblemError: the model is not the base model, a file is for another purpose or has bad rows, or see
            ``check_plan``.
        UnknownError: there is no such file, task or method.
        NotFetchedError: a file has to be fetched first; nothing is queued then.
    """
    _require_base(services, body.model)
    adapter = _adapter_name(body.suffix)
    given = _options(services, body, adapter)
    try:
        check_plan(services, JobPlan(task=body.task, adapter=adapter, method=body.method_name, options=given))
    except InvalidNameError as error:
        raise ProblemError("invalid-name", str(error), param="suffix") from error
    dataset = _dataset(services, body.training_file, body.task, "training_file")
    if body.validation_file is not None:
        given["validation_dataset"] = _dataset(services, body.validation_file, body.task, "validation_file").id
    options = check_plan(services, JobPlan(task=body.task, adapter=adapter, method=body.method_name, options=given))
    request: dict[str, Any] = {
        "training_file": body.training_file,
        "validation_file": body.validation_file,
        "suffix": body.suffix,
        "metadata": body.metadata,
        "model": services.base_name,
        "learning_rate_multiplier": body.asked.learning_rate_multiplier or 1.0,
        "paused": False,
        "result_files": [],
    }
    return services.registry.create_job(
        task=body.task, adapter=adapter, dataset=dataset.id, method=body.method_name, options=options, request=request
    )


def _require_base(services: Services, model: str) -> None:
    if not services.is_base(model):
        services.registry.target(model)
        detail = f"`model`: adapters are trained on the base model alone; give {services.base_name!r}, not {model!r}"
        raise ProblemError("unservable", detail, param="model")


def _adapter_name(suffix: str | None) -> str:
    """A tenant's adapters have its name in front, so that its suffixes need not."""
    name = suffix or f"ft-{secrets.token_hex(4)}"
    view = visible.get()
    if view is not None and not view.allows(name) and view.allows(f"{view.owner}.{name}"):
        return f"{view.owner}.{name}"
    return name


def _options(services: Services, body: FineTuningCreate, adapter: str) -> dict[str, Any]:
    """The caller's options; a checkpoint is a model to call, as OpenAI's service has it, unless they say otherwise, or
    may not use its name."""
    given: dict[str, Any] = {"publish_checkpoints": _can_be_named(checkpoints_of(adapter)), **body.options}
    asked = body.asked
    if body.seed is not None:
        given["seed"] = body.seed
    if asked.n_epochs is not None:
        given["epochs"] = asked.n_epochs
    if asked.batch_size is not None:
        given["batch_size"] = asked.batch_size
    if asked.learning_rate_multiplier is not None:
        task, method = services.host.task(body.task), services.host.method(body.method_name)
        rate = resolve_options(task, method, given).training.learning_rate
        given["learning_rate"] = rate * asked.learning_rate_multiplier
    return given


def _can_be_named(name: str) -> bool:
    try:
        check_name(name)
    except InvalidNameError:
        return False
    return True


def _dataset(services: Services, file_id: str, task: str, param: str) -> DatasetRecord:
    """What a file is as a dataset: a copy, which stays when the file is deleted."""
    record = services.registry.kept_files.get(file_id)
    if record.data["purpose"] != "fine-tune":
        detail = f"`{param}`: {file_id!r} was uploaded for {record.data['purpose']!r}; upload it for 'fine-tune'"
        raise ProblemError("invalid-request", detail, param=param)
    services.uploads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=services.uploads) as folder:
        path = Path(folder) / record.data["filename"]
        stored = services.registry.kept_files.stored(file_id)
        with services.registry.files(stored, wait=False):
            shutil.copyfile(stored.content, path)
        try:
            return store_dataset(services, task, [path], "jsonl")
        except ProblemError as error:
            error.param = param
            raise
