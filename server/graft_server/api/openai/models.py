"""``/v1/models``: the base model and every adapter."""

from __future__ import annotations

import asyncio
import calendar

from fastapi import APIRouter

from graft_client.schemas.openai import Model, ModelList
from graft_server.api.deps import ServicesDep
from graft_server.registry.records import RouteRecord, VersionRecord
from graft_server.services import Services

router = APIRouter(prefix="/v1/models", tags=["openai"])


@router.get("")
async def list_models(services: ServicesDep) -> ModelList:
    """The base model first, then adapters, each answering as its latest version, then routes."""
    records = await asyncio.to_thread(services.registry.adapters, None)
    models = [_adapter(services, record.latest, record.name) for record in records]
    routes = [_route(record) for record in await asyncio.to_thread(services.registry.routes.all)]
    return ModelList(data=[_base(services, services.base_name), *models, *routes])


# A hub id has a slash in it.
@router.get("/{model:path}")
async def show_model(model: str, services: ServicesDep) -> Model:
    """An adapter, one of its versions (``name@N`` or ``name@alias``), a route, or the base model."""
    if model in ("base", services.base_name):
        return _base(services, model)
    target = await asyncio.to_thread(services.registry.target, model)
    return _route(target) if isinstance(target, RouteRecord) else _adapter(services, target, model)


def _base(services: Services, name: str) -> Model:
    return Model(id=name, created=int(services.lifecycle.started_wall), root=services.base_name)


def _adapter(services: Services, version: VersionRecord, name: str) -> Model:
    created = calendar.timegm(version.created_at.utctimetuple())
    return Model(id=name, created=created, parent=version.lineage.base_model, root=version.ref)


def _route(record: RouteRecord) -> Model:
    heaviest = max(record.spec.targets, key=lambda target: target.weight)
    return Model(id=record.name, created=calendar.timegm(record.updated_at.utctimetuple()), root=heaviest.ref)
