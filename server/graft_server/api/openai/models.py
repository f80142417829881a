"""``/v1/models``: the base model, every adapter with its aliases and versions, and routes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from fastapi import APIRouter

from graft_client.schemas.openai import Model, ModelDeleted, ModelList
from graft_server.api.deps import ServicesDep
from graft_server.api.openai.pages import unix_seconds
from graft_server.api.removal import remove_adapter, remove_version
from graft_server.problems import ProblemError
from graft_server.registry.records import AdapterRecord, RouteRecord, VersionRecord
from graft_server.services import Services

router = APIRouter(prefix="/v1/models", tags=["openai"])


@router.get("")
async def list_models(services: ServicesDep) -> ModelList:
    """The base model, adapters (each answers as its latest version) with their aliases and versions, then routes."""
    records = await asyncio.to_thread(services.registry.adapters, None)
    models = [model for record in records for model in _adapter_models(record)]
    routes = [_route(record) for record in await asyncio.to_thread(services.registry.routes.all)]
    return ModelList(data=[_base(services, services.base_name), *models, *routes])


# A hub id has a slash in it.
@router.get("/{model:path}")
async def show_model(model: str, services: ServicesDep) -> Model:
    """An adapter, one of its versions (``name@N`` or ``name@alias``), a route, or the base model."""
    if services.is_base(model):
        return _base(services, model)
    target = await asyncio.to_thread(services.registry.target, model)
    return _route(target) if isinstance(target, RouteRecord) else _adapter(target, model)


@router.delete("/{model:path}")
async def delete_model(model: str, services: ServicesDep) -> ModelDeleted:
    """Delete an adapter with all its versions, or one version (`name@N`)."""
    version = await asyncio.to_thread(_deletable, services, model)
    if "@" in model:
        await remove_version(services, version.adapter, version.version)
    else:
        await remove_adapter(services, version.adapter)
    return ModelDeleted(id=model)


def _base(services: Services, name: str) -> Model:
    return Model(id=name, created=int(services.lifecycle.started_wall), root=services.base_name)


def _deletable(services: Services, model: str) -> VersionRecord:
    """The version that a name leads to.

    Raises:
        ProblemError: the model is the base model, an alias or a route.
        UnknownError: there is no such model.
    """
    if services.is_base(model):
        raise ProblemError("conflict", "the base model can't be deleted; the server was started with it")
    target = services.registry.target(model)
    if isinstance(target, RouteRecord):
        raise ProblemError("conflict", f"{model!r} is a route; delete it with DELETE /api/routes/{model}")
    name, at, which = model.partition("@")
    if at and not which.isdecimal():
        hint = f"delete the version, {target.ref}, or the alias with DELETE /api/adapters/{name}/aliases/{which}"
        raise ProblemError("conflict", f"{model!r} is an alias; {hint}")
    return target


def _adapter_models(record: AdapterRecord) -> Iterator[Model]:
    yield _adapter(record.latest, record.name)
    versions = {version.version: version for version in record.versions}
    for alias, number in sorted(record.aliases.items()):
        yield _adapter(versions[number], f"{record.name}@{alias}")
    for version in record.versions:
        yield _adapter(version, version.ref)


def _adapter(version: VersionRecord, name: str) -> Model:
    created = unix_seconds(version.created_at)
    return Model(id=name, created=created, parent=version.lineage.base_model, root=version.ref)


def _route(record: RouteRecord) -> Model:
    heaviest = max(record.spec.targets, key=lambda target: target.weight)
    return Model(id=record.name, created=unix_seconds(record.updated_at), root=heaviest.ref)
