"""Routes of requests to versions by weight: making, changing and watching them, and why a request goes where."""

from __future__ import annotations

import asyncio
import time
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query, Response

from graft_client.schemas.routes import (
    ExplainRequest,
    Explanation,
    RouteEvent,
    RouteInfo,
    SetRouteRequest,
    ShadowRecord,
)
from graft_server.api.deps import ServicesDep, WhoDep
from graft_server.api.views import route_event, route_info
from graft_server.registry.reading import with_files
from graft_server.registry.records import RouteRecord
from graft_server.routing.resolver import Route
from graft_server.services import Services

router = APIRouter(prefix="/api", tags=["routes"])

#: Adapters that an explanation names as never chosen by the text.
_MOST_ABSENT = 20


@router.get("/routes")
async def list_routes(services: ServicesDep) -> list[RouteInfo]:
    """Every route, with what its targets did lately."""
    return [_info(services, record) for record in await asyncio.to_thread(services.registry.routes.all)]


@router.get("/routes/{name}")
async def show_route(name: str, services: ServicesDep) -> RouteInfo:
    """One route, with what its targets did lately."""
    return _info(services, await asyncio.to_thread(services.registry.routes.get, name))


@router.post("/routes/{name}")
async def set_route(name: str, body: SetRouteRequest, services: ServicesDep, who: WhoDep) -> RouteInfo:
    """Make a route, or change it: targets by weight, a shadow, fallbacks and a guard."""
    # A route with a task's name is where the task's requests go.
    task = name if name in services.host.tasks else None
    record = await asyncio.to_thread(
        services.registry.routes.set, name, body.spec, who=who, why=body.why, revision=body.revision, task=task
    )
    return _info(services, record)


@router.delete("/routes/{name}", status_code=204)
async def delete_route(name: str, services: ServicesDep, who: WhoDep, why: str = "") -> Response:
    """Delete a route. Who asks for it is answered that it does not exist; its history is kept."""
    await asyncio.to_thread(services.registry.routes.delete, name, who=who, why=why)
    return Response(status_code=204)


@router.get("/routes/{name}/history")
async def route_history(name: str, services: ServicesDep) -> list[RouteEvent]:
    """What became of a route, the newest first: who, when and why; guards among them."""
    return [route_event(event) for event in await asyncio.to_thread(services.registry.routes.history, name)]


@router.get("/routes/{name}/shadow")
async def route_shadow(
    name: str, services: ServicesDep, limit: Annotated[int, Query(ge=1, le=10_000)] = 100
) -> list[ShadowRecord]:
    """What a route's shadow answered on this server beside what was returned, the newest first."""
    await asyncio.to_thread(services.registry.routes.history, name)
    return await asyncio.to_thread(services.shadows.records, name, limit)


@router.post("/explain")
async def explain(body: ExplainRequest, services: ServicesDep) -> Explanation:
    """How a request would be routed, step by step; nothing is answered."""
    adapter = body.adapter if body.adapter is not None or body.task is not None else "auto"

    def decide() -> tuple[Route, list[str]]:
        steps: list[str] = []
        return services.resolver.resolve(adapter, body.task, body.text, key=body.key, say=steps.append), steps

    route, steps = await with_files(services.registry, decide)
    if adapter == "auto":
        absent = await asyncio.to_thread(services.profiles.absent, body.task)
        steps += [f"{ref} takes no part: {why}" for ref, why in islice(absent.items(), _MOST_ABSENT)]
        if len(absent) > _MOST_ABSENT:
            steps.append(f"{len(absent) - _MOST_ABSENT} more adapters take no part")
    return Explanation(
        adapter=route.ref,
        task=route.task.name,
        steps=[*steps, f"{route.ref} answers as task {route.task.name}"],
        fallback=[each.ref for each in route.fallback],
        shadow=route.shadow.ref if route.shadow else None,
    )


def _info(services: Services, record: RouteRecord) -> RouteInfo:
    return route_info(record, services.guards.figures(record, time.monotonic()))
