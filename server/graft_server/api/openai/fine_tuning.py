"""``/v1/fine_tuning/jobs``: adapters trained from uploaded files, followed, paused and resumed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from graft_client.schemas.jobs import JobState
from graft_client.schemas.openai_files import ListPage
from graft_client.schemas.openai_tuning import (
    FineTuningCheckpoint,
    FineTuningCreate,
    FineTuningEvent,
    FineTuningJob,
)
from graft_server.access.principal import current_lease
from graft_server.api.deps import ServicesDep, require_engine
from graft_server.api.jobs import HEARTBEAT, go_on, happening, stop, wake
from graft_server.api.openai.pages import After, behind, page_of
from graft_server.api.openai.stream import DONE, error_chunk
from graft_server.api.openai.tuning_plan import create_tuning
from graft_server.api.openai.tuning_views import checkpoints_in, event_number, tuning_event, tuning_job
from graft_server.api.streaming import EVENTS, StreamResponse, event
from graft_server.problems import ProblemError
from graft_server.registry.documents import DocumentRecord, job_document
from graft_server.registry.errors import UnknownError
from graft_server.registry.reading import with_files
from graft_server.registry.records import JobRecord
from graft_server.services import Services

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["openai"])

_PREFIX = job_document("")

Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("")
async def create_fine_tuning_job(body: FineTuningCreate, services: ServicesDep) -> FineTuningJob:
    """Train an adapter on an uploaded file. Whatever could only fail later is refused here."""
    require_engine(services)
    job = await with_files(services.registry, create_tuning, services, body)
    wake(services)
    return await asyncio.to_thread(_shown, services, job_document(job.id))


@router.get("")
async def list_fine_tuning_jobs(
    request: Request, services: ServicesDep, after: After = None, limit: Limit = 20
) -> ListPage[FineTuningJob]:
    """The jobs that were made here, the newest first; of those whose metadata say so with `metadata[key]=value`."""
    wanted = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[")
    }
    return page_of(await asyncio.to_thread(_list, services, after, limit + 1, wanted), limit)


@router.get("/{job_id}")
async def show_fine_tuning_job(job_id: str, services: ServicesDep) -> FineTuningJob:
    """One job and where it stands."""
    return await asyncio.to_thread(_shown, services, job_id)


@router.post("/{job_id}/cancel")
async def cancel_fine_tuning_job(job_id: str, services: ServicesDep) -> FineTuningJob:
    """Stop a job for good; a paused one too."""
    job = await asyncio.to_thread(_job, services, job_id)
    await stop(services, job.id)
    await asyncio.to_thread(_mark, services, job_id, paused=False)
    return await asyncio.to_thread(_shown, services, job_id)


@router.post("/{job_id}/pause")
async def pause_fine_tuning_job(job_id: str, services: ServicesDep) -> FineTuningJob:
    """Stop a job with a checkpoint from which it can be resumed."""
    job = await asyncio.to_thread(_job, services, job_id)
    if job.state is JobState.cancelled:
        raise ProblemError("conflict", f"job {job_id!r} is stopped already")
    # Before it stops, so that it is never seen as cancelled.
    await asyncio.to_thread(_mark, services, job_id, paused=True)
    await stop(services, job.id)
    return await asyncio.to_thread(_shown, services, job_id)


@router.post("/{job_id}/resume")
async def resume_fine_tuning_job(job_id: str, services: ServicesDep) -> FineTuningJob:
    """Queue a paused job again (a cancelled or failed one too); it goes on from its last checkpoint."""
    job = await asyncio.to_thread(_job, services, job_id)
    # As it was queued, however soon it is at work.
    queued = await go_on(services, job.id)
    return tuning_job(await asyncio.to_thread(_mark, services, job_id, paused=False), queued)


@router.get("/{job_id}/events", response_model=ListPage[FineTuningEvent], responses={200: {"content": {EVENTS: {}}}})
async def list_fine_tuning_events(
    job_id: str,
    services: ServicesDep,
    after: After = None,
    limit: Limit = 20,
    stream: Annotated[bool, Query(description="The whole history as server-sent events, the oldest first.")] = False,
) -> Response:
    """A job's history, the newest first; with `stream`, as server-sent events until the job has finished."""
    job = await asyncio.to_thread(_job, services, job_id)
    before = None if after is None else event_number(job.id, after)
    if stream:
        return StreamResponse(_told(services, job.id, before or 0), media_type=EVENTS)
    entries = await asyncio.to_thread(services.registry.recent_events, job.id, before=before, limit=limit + 1)
    page: ListPage[FineTuningEvent] = page_of([tuning_event(job.id, entry) for entry in entries], limit)
    return JSONResponse(page.model_dump(mode="json"))


@router.get("/{job_id}/checkpoints")
async def list_fine_tuning_checkpoints(
    job_id: str, services: ServicesDep, after: After = None, limit: Limit = 10
) -> ListPage[FineTuningCheckpoint]:
    """A job's checkpoints with the losses of their steps, the newest first. Each is a `model` to call."""
    job = await asyncio.to_thread(_job, services, job_id)
    history = await asyncio.to_thread(services.registry.recent_events, job.id, kind="checkpoint")
    found = checkpoints_in(job_id, job, history)
    return page_of(behind(found, after, "the job has no checkpoint"), limit)


def _job(services: Services, job_id: str) -> JobRecord:
    """
    Raises:
        UnknownError: it was not made here, or by somebody else.
    """
    services.registry.documents.get("fine-tuning", job_id)
    return services.registry.job(job_id.removeprefix(_PREFIX))


def _shown(services: Services, job_id: str) -> FineTuningJob:
    request = services.registry.documents.get("fine-tuning", job_id)
    return tuning_job(request, services.registry.job(job_id.removeprefix(_PREFIX)))


def _list(services: Services, after: str | None, limit: int, wanted: Mapping[str, str]) -> list[FineTuningJob]:
    def keep(data: dict[str, Any]) -> bool:
        return wanted.items() <= (data["metadata"] or {}).items()

    found: list[FineTuningJob] = []
    while len(found) < limit:
        requests = services.registry.documents.list("fine-tuning", after=after, limit=limit, keep=keep)
        for request in requests:
            # A tenant's keys need not see all adapters of the tenant's jobs.
            with suppress(UnknownError):
                found.append(tuning_job(request, services.registry.job(request.id.removeprefix(_PREFIX))))
        if len(requests) < limit:
            break
        after = requests[-1].id
    return found[:limit]


def _mark(services: Services, job_id: str, *, paused: bool) -> DocumentRecord:
    return services.registry.documents.update("fine-tuning", job_id, paused=paused)


async def _told(services: Services, job_id: str, after: int) -> AsyncGenerator[str]:
    async with aclosing(happening(services, job_id, after)) as entries:
        async for entry in entries:
            yield HEARTBEAT if entry is None else event(tuning_event(job_id, entry))
    lease = current_lease.get()
    if lease is not None and lease.ended is not None:
        yield error_chunk(ProblemError("unauthorized", lease.ended))
    elif (await asyncio.to_thread(services.registry.job, job_id)).state.finished:
        yield DONE  # and not where the server goes: there is more to follow
