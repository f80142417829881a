"""Training jobs: submitting, following, cancelling and resuming them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from graft_client.schemas.jobs import JobCheck, JobCreate, JobEvent, JobInfo, JobPlan, JobState
from graft_server.access.principal import current_lease
from graft_server.api.adapters import check_adapter_name
from graft_server.api.deps import ServicesDep, require_engine
from graft_server.api.streaming import EVENTS, StreamResponse, event
from graft_server.api.views import job_info
from graft_server.problems import ProblemError
from graft_server.registry.records import JobRecord
from graft_server.services import Services
from graft_server.training.options import resolve_options
from graft_server.training.spec import checkpoints_of

router = APIRouter(prefix="/api/jobs", tags=["jobs"])

#: Entries of a history that are read at once.
_PAGE = 1000
_POLL_SECONDS = 0.25
_HEARTBEAT_SECONDS = 15.0
#: What `Last-Event-ID` holds where it is one of ours.
_SEQ = re.compile(r"[0-9]{1,18}")
#: A comment, as event streams have them.
HEARTBEAT = ": still running\n\n"


@router.post("", status_code=201)
async def create_job(body: JobCreate, services: ServicesDep) -> JobInfo:
    """Queue a job. Whatever could only fail later is refused here."""
    require_engine(services, awake=False)
    record = await asyncio.to_thread(_create, services, body)
    wake(services)
    return job_info(record)


@router.post("/check")
async def check_job(body: JobPlan, services: ServicesDep) -> JobCheck:
    """Refuse what a job would be refused for, before there is a dataset; nothing is queued."""
    require_engine(services, awake=False)
    return JobCheck(options=await asyncio.to_thread(check_plan, services, body))


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
    return job_info(await stop(services, job_id))


@router.post("/{job_id}/resume")
async def resume_job(job_id: str, services: ServicesDep) -> JobInfo:
    """Queue a cancelled or failed job again; it goes on from its last checkpoint."""
    return job_info(await go_on(services, job_id))


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
    async with aclosing(happening(services, job_id, after, follow=follow)) as items:
        async for item in items:
            yield HEARTBEAT if item is None else event(item, name=item.kind, seq=item.seq)


async def happening(
    services: Services, job_id: str, after: int = 0, *, follow: bool = True
) -> AsyncGenerator[JobEvent | None]:
    """What a job's history has behind ``after`` and, to ``follow``, what comes until it has finished; ``None`` now and
    then where nothing comes, so that the connection is seen to live."""
    last_sent = time.monotonic()
    lease = current_lease.get()
    while lease is None or lease.ended is None:  # whoever follows on is told why
        # The state is read before the events, so that the events of a finished job are all there.
        finished = (await asyncio.to_thread(services.registry.job, job_id)).state.finished
        items = await asyncio.to_thread(services.registry.events, job_id, after, _PAGE)
        for item in items:
            yield item
            after = item.seq
            last_sent = time.monotonic()
        if len(items) == _PAGE:
            continue
        if finished or not follow or services.lifecycle.draining:
            return
        if time.monotonic() - last_sent >= _HEARTBEAT_SECONDS:
            yield None
            last_sent = time.monotonic()
        await services.lifecycle.sleep(_POLL_SECONDS)


def wake(services: Services) -> None:
    """A job waits in the queue."""
    if services.jobs is not None:
        services.jobs.wake()


async def stop(services: Services, job_id: str) -> JobRecord:
    """Cancel a job, wherever it stands.

    Raises:
        UnknownError: there is none.
        ConflictError: it has succeeded or failed.
    """
    ended = await asyncio.to_thread(services.registry.request_cancel, job_id)
    if services.jobs is not None:
        await services.jobs.cancel(job_id, ended=ended)
    return await asyncio.to_thread(services.registry.job, job_id)


async def go_on(services: Services, job_id: str) -> JobRecord:
    """Queue a job again that was cancelled or has failed.

    Raises:
        UnknownError: there is none, or its dataset was deleted.
        ConflictError: it is neither.
    """
    record = await asyncio.to_thread(services.registry.resume_job, job_id)
    wake(services)
    return record


def _create(services: Services, body: JobCreate) -> JobRecord:
    registry = services.registry
    options = check_plan(services, body)
    dataset = registry.dataset(body.dataset)
    if dataset.task != body.task:
        raise ProblemError("conflict", f"dataset {dataset.id!r} is of task {dataset.task!r}, not {body.task!r}")
    return registry.create_job(
        task=body.task, adapter=body.adapter, dataset=dataset.id, method=body.method, options=options
    )


def check_plan(services: Services, body: JobPlan) -> dict[str, Any]:
    """The options in force of a job that would be taken. Blocking.

    Raises:
        ProblemError: the engine could not serve what comes of it, or a name is taken or unknown.
        OptionError: an option is wrong.
        RegistryError: the adapter can't be called so, or there is no such dataset to watch the loss on.
    """
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
    if (watched := options["validation_dataset"]) is not None:
        dataset = services.registry.dataset(watched)
        if dataset.task != task.name:
            detail = f"options.validation_dataset: {watched!r} is of task {dataset.task!r}, not {task.name!r}"
            raise ProblemError("conflict", detail)
    if options["publish_checkpoints"]:
        check_adapter_name(services, checkpoints_of(body.adapter), task.name)
    return options
