"""What the loaded plugins bring: tasks, adapter methods, dataset formats."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from graft_client.schemas.tasks import (
    FormatInfo,
    MethodInfo,
    OptionInfo,
    PluginFault,
    PluginInfo,
    PluginList,
    TaskInfo,
    TrainingInfo,
)
from graft_plugins.dataset import formats_for
from graft_plugins.manager import PluginHost
from graft_plugins.task import AnyTask
from graft_server.api.deps import ServicesDep
from graft_server.training.options import TrainingOptions

router = APIRouter(prefix="/api", tags=["tasks"])


@router.get("/tasks")
async def list_tasks(services: ServicesDep) -> list[TaskInfo]:
    """Every task, by name."""
    return [_task_info(services.host, task) for _, task in sorted(services.host.tasks.items())]


@router.get("/tasks/{name}")
async def show_task(name: str, services: ServicesDep) -> TaskInfo:
    """One task, with the JSON schemas of its examples, requests and responses."""
    return _task_info(services.host, services.host.task(name))


@router.get("/training")
async def training(services: ServicesDep) -> TrainingInfo:
    """The options, methods and formats that a job can be given."""
    host = services.host
    return TrainingInfo(
        options=_options(TrainingOptions),
        methods=[
            MethodInfo(
                name=method.name,
                description=method.description,
                plugin=host.provider("method", method.name).name,
                options=_options(method.options_model),
            )
            for method in host.methods.values()
        ],
        formats=[
            FormatInfo(
                name=reader.name,
                description=reader.description,
                plugin=host.provider("reader", reader.name).name,
                tasks=sorted(reader.tasks),
            )
            for reader in host.readers.values()
        ],
    )


@router.get("/plugins")
async def plugins(services: ServicesDep) -> PluginList:
    """Every plugin that takes part, and what was left out because it was faulty."""
    return PluginList(
        plugins=[
            PluginInfo(
                name=plugin.name,
                version=plugin.version,
                built_in=plugin.built_in,
                tasks=list(plugin.tasks),
                readers=list(plugin.readers),
                methods=list(plugin.methods),
                routers=list(plugin.routers),
                observes=list(plugin.observes),
            )
            for plugin in services.host.plugins
        ],
        faults=[
            PluginFault(plugin=fault.plugin, hook=fault.hook, file=fault.file, line=fault.line, error=fault.error)
            for fault in services.host.faults
        ],
    )


def _task_info(host: PluginHost, task: AnyTask) -> TaskInfo:
    return TaskInfo(
        name=task.name,
        title=task.title,
        description=task.description,
        plugin=host.provider("task", task.name).name,
        formats=formats_for(host.readers, task),
        training_defaults=dict(task.training_defaults),
        example_request=dict(task.example_request),
        example_schema=task.example_model.model_json_schema(),
        request_schema=task.request_model.model_json_schema(),
        response_schema=task.response_model.model_json_schema(mode="serialization"),
    )


def _options(model: type[BaseModel]) -> list[OptionInfo]:
    properties = model.model_json_schema().get("properties", {})
    return [
        OptionInfo(
            name=name,
            type=_type_name(properties.get(name, {})),
            default=None if field.is_required() else to_jsonable_python(field.get_default(call_default_factory=True)),
            description=field.description or "",
        )
        for name, field in model.model_fields.items()
    ]


def _type_name(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words, e.g. ``number`` or ``adamw | sgd``."""
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(_type_name(option) for option in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type_name(schema.get('items', {}))}"
    return str(schema.get("type", "any"))
