"""Is the process alive, can it answer, and what is it doing?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from graft_client.schemas.status import (
    AdapterTraffic,
    BaseModelStatus,
    EngineStatus,
    Health,
    PinnedVersion,
    ServerStatus,
)
from graft_server.api.deps import ServicesDep
from graft_server.engine.base import UP
from graft_server.registry.visibility import visible
from graft_server.services import Services
from graft_server.serving.traffic import Load

router = APIRouter(tags=["server"])

try:
    VERSION = version("graftwork")
except PackageNotFoundError:
    VERSION = "0+unknown"


@router.get("/health/live")
async def live() -> Health:
    """The process answers."""
    return Health(status="live")


@router.get("/health/ready")
async def ready(services: ServicesDep, response: Response) -> Health:
    """Requests can be answered; 503 while they can't."""
    if services.ready:
        return Health(status="ready")
    response.status_code = 503
    response.headers["Retry-After"] = "2"
    if services.lifecycle.draining:
        return Health(status="draining", detail="the server is shutting down")
    return Health(status=services.engine.state, detail=services.engine.error)


@router.get("/metrics", response_class=Response)
async def metrics(services: ServicesDep) -> Response:
    """Figures in Prometheus' text format."""
    await services.engine_stats.get(max_age=1.0)
    return Response(await asyncio.to_thread(services.metrics.render), media_type=CONTENT_TYPE_LATEST)


@router.get("/api/status")
async def status(services: ServicesDep) -> ServerStatus:
    """Engine, queues and what is registered."""
    engine, base = await _engine(services)
    counts = await asyncio.to_thread(services.registry.counts)
    pinned = await asyncio.to_thread(services.registry.pinned_versions)
    now = time.monotonic()
    traffic = services.predictor.traffic
    view = visible.get()
    loads = traffic.loads(now)
    if view is not None:
        shown = [ref for ref in engine.loaded_adapters if view.allows(ref.partition("@")[0])]
        engine = engine.model_copy(update={"loaded_adapters": shown})
        loads = {ref: load for ref, load in loads.items() if ref == "base" or view.allows(ref.partition("@")[0])}
    return ServerStatus(
        version=VERSION,
        name=services.registry.server,
        ready=services.ready,
        uptime_seconds=services.lifecycle.uptime,
        base_model=base,
        engine=engine,
        adapters=counts.adapters,
        versions=counts.versions,
        tasks=sorted(services.host.tasks),
        pinned=[
            PinnedVersion(
                ref=version.ref,
                loaded=version.ref in engine.loaded_adapters,
                error=services.pins.failures.get(version.ref),
            )
            for version in pinned
        ],
        queued_requests=services.predictor.queued,
        admitted_requests=services.predictor.admitted,
        queue_age_seconds=traffic.queue_age(now),
        traffic=_traffic(engine.loaded_adapters, loads),
        jobs=counts.jobs,
        servers=services.presence.servers,
        # They are for whoever runs the servers.
        warnings=services.presence.warnings if view is None else [],
    )


async def _engine(services: Services) -> tuple[EngineStatus, BaseModelStatus]:
    engine = services.engine
    status = EngineStatus(
        name=services.settings.engine, state=engine.state, restarts=engine.restarts, error=engine.error
    )
    if engine.state not in UP:
        return status, BaseModelStatus(name=services.base_name)
    stats = await services.engine_stats.get()
    capabilities, model = engine.capabilities, engine.model
    status = status.model_copy(
        update={
            "name": capabilities.engine,
            "device": capabilities.device,
            "dtype": capabilities.dtype,
            "running": stats.running,
            "waiting": stats.waiting,
            "loaded_adapters": list(stats.loaded),
            "slots": stats.slots or capabilities.slots,
            "kv_blocks_used": stats.kv_blocks_used,
            "kv_blocks_total": stats.kv_blocks_total,
            "generated_tokens": stats.generated_tokens,
            "tokens_per_second": stats.tokens_per_second,
            "preemptions": stats.preemptions,
            "reused_tokens": stats.reused_tokens,
            "evictions": stats.evictions,
            "stats_age_seconds": services.engine_stats.age,
        }
    )
    base = BaseModelStatus(
        name=model.name,
        fingerprint=model.fingerprint,
        architecture=model.architecture,
        context_length=model.context_length,
        parameters=model.parameters,
        path=model.path,
    )
    return status, base


def _traffic(loaded: Sequence[str], loads: Mapping[str, Load]) -> list[AdapterTraffic]:
    """What is in a slot, asked for or not, and what is asked for, in a slot or not."""
    idle = Load(running=0, waiting=0, tokens_per_second=0.0)
    rows = [
        AdapterTraffic(
            ref=ref,
            loaded=ref == "base" or ref in loaded,
            running=load.running,
            waiting=load.waiting,
            tokens_per_second=load.tokens_per_second,
        )
        for ref, load in {**dict.fromkeys(loaded, idle), **loads}.items()
    ]
    return sorted(rows, key=lambda row: (-row.tokens_per_second, -row.running, -row.waiting, row.ref))
