"""Training jobs: submitting, following, cancelling and resuming them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from graft_client.schemas.jobs import JobCheck, JobCreate, JobInfo, JobPlan, JobState
from graft_server.access.principal import current_lease
from graft_server.api.adapters import check_adapter_name
from graft_server.api.deps import ServicesDep, require_engine
from graft_server.api.streaming import EVENTS, StreamResponse, event
from graft_server.api.views import job_info
from graft_server.problems import ProblemError
from graft_server.registry.records import JobRecord
from graft_server.services import Services
from graft_server.training.options import resolve_options

router = APIRouter(prefix="/api/jobs", tags=["jobs"])

_POLL_SECONDS = 0.25
_HEARTBEAT_SECONDS = 15.0
#: What `Last-Event-ID` holds where it is one of ours.
_SEQ = re.compile(r"[0-9]{1,18}")


@router.post("", status_code=201)
async def create_job(body: JobCreate, services: ServicesDep) -> JobInfo:
    """Queue a job. Whatever could only fail later is refused here."""
    require_engine(services)
    record = await asyncio.to_thread(_create, services, body)
    _wake(services)
    return job_info(record)


@router.post("/check")
async def check_job(body: JobPlan, services: ServicesDep) -> JobCheck:
    """Refuse what a job would be refused for, before there is a dataset; nothing is queued."""
    require_engine(services)
    return JobCheck(options=await asyncio.to_thread(_check, services, body))


@router.get("")
async def list_jobs(
    services: ServicesDep,
    state: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[JobInfo]:
    """The newest jobs first; of one state with `state`."""
    records = await asyncio.to_thread(lambda: services.registry.jobs(state=state, limit=limit))
    return [job_info(record) for record in records]


@router.get("/{job_id}")
async def show_job(job_id: str, services: ServicesDep) -> JobInfo:
    """One job and where it stands."""
    return job_info(await asyncio.to_thread(services.registry.job, job_id))


@router.post("/{job_id}/cancel")
async def cancel_job(job_id: str, services: ServicesDep) -> JobInfo:
    """Stop a job. A running one keeps its last checkpoint."""
    await asyncio.to_thread(services.registry.request_cancel, job_id)
    if services.jobs is not None:
        await services.jobs.cancel(job_id)
    return job_info(await asyncio.to_thread(services.registry.job, job_id))


@router.post("/{job_id}/resume")
async def resume_job(job_id: str, services: ServicesDep) -> JobInfo:
    """Queue a cancelled or failed job again; it goes on from its last checkpoint."""
    record = await asyncio.to_thread(services.registry.resume_job, job_id)
    _wake(services)
    return job_info(record)


@router.get("/{job_id}/events", response_class=StreamingResponse)
async def job_events(
    job_id: str,
    services: ServicesDep,
    after: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    follow: bool = True,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamResponse:
    """The job's history as server-sent events, and what happens from now on until it has finished."""
    await asyncio.to_thread(services.registry.job, job_id)
    if after is None:
        after = int(last_event_id) if last_event_id and _SEQ.fullmatch(last_event_id) else 0
    return StreamResponse(_events(services, job_id, after, follow), media_type=EVENTS)


async def _events(services: Services, job_id: str, after: int, follow: bool) -> AsyncGenerator[str]:
    last_sent = time.monotonic()
    lease = current_lease.get()
    while lease is None or lease.ended is None:  # whoever follows on is told why
        # The state is read before the events, so that the events of a finished job are all there.
        finished = (await asyncio.to_thread(services.registry.job, job_id)).state.finished
        for item in await asyncio.to_thread(services.registry.events, job_id, after):
            yield event(item, name=item.kind, seq=item.seq)
            after = item.seq
            last_sent = time.monotonic()
        if finished or not follow or services.lifecycle.draining:
            return
        if time.monotonic() - last_sent >= _HEARTBEAT_SECONDS:
            yield ": still running\n\n"
            last_sent = time.monotonic()
        await services.lifecycle.sleep(_POLL_SECONDS)


def _wake(services: Services) -> None:
    if services.jobs is not None:
        services.jobs.wake()


def _create(services: Services, body: JobCreate) -> JobRecord:
    registry = services.registry
    options = _check(services, body)
    dataset = registry.dataset(body.dataset)
    if dataset.task != body.task:
        raise ProblemError("conflict", f"dataset {dataset.id!r} is of task {dataset.task!r}, not {body.task!r}")
    return registry.create_job(
        task=body.task, adapter=body.adapter, dataset=dataset.id, method=body.method, options=options
    )


def _check(services: Services, body: JobPlan) -> dict[str, Any]:
    """The options in force of a job that would be taken."""
    host = services.host
    task = host.task(body.task)
    check_adapter_name(services, body.adapter, task.name)
    method = host.method(body.method)
    capabilities = services.engine.capabilities
    if method.name not in capabilities.methods:
        raise ProblemError(
            "unservable",
            f"method: the {capabilities.engine} engine can't serve {method.name!r}; "
            f"it serves {', '.join(capabilities.methods)}{capabilities.otherwise and f'; {capabilities.otherwise}'}",
        )
    options = resolve_options(task, method, body.options).flat
    rank = method.rank(options)
    if rank > capabilities.max_rank:
        raise ProblemError(
            "unservable",
            f"options.r: rank {rank} is more than this server serves ({capabilities.max_rank}, `max_rank`)",
        )
    return options
