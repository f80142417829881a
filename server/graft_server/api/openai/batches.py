"""``/v1/batches``: many requests in a file, answered in the background."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query

from graft_client.schemas.openai_batches import Batch, BatchCounts, BatchCreate, BatchFaults, BatchUsage
from graft_client.schemas.openai_files import ListPage
from graft_server.access.principal import current_key
from graft_server.api.deps import ServicesDep
from graft_server.api.openai.pages import After, page_of, unix_seconds
from graft_server.problems import ProblemError
from graft_server.registry.documents import DocumentRecord
from graft_server.registry.errors import ConflictError
from graft_server.services import Services
from graft_server.serving.batches import FINISHED, UNANSWERED

router = APIRouter(prefix="/v1/batches", tags=["openai"])

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TIMES = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


@router.post("")
async def create_batch(body: BatchCreate, services: ServicesDep) -> Batch:
    """Answer the requests of an uploaded file in the background, behind whoever waits for an answer."""
    record = await asyncio.to_thread(_create, services, body)
    if services.batches is not None:
        services.batches.begin(record.id)
    return batch_object(record)


@router.get("")
async def list_batches(
    services: ServicesDep, after: After = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> ListPage[Batch]:
    """The batches, the newest first."""
    records = await asyncio.to_thread(services.registry.documents.list, "batch", after=after, limit=limit + 1)
    return page_of([batch_object(record) for record in records], limit)


@router.get("/{batch_id}")
async def show_batch(batch_id: str, services: ServicesDep) -> Batch:
    """One batch and how far it is, at most a second ago."""
    return batch_object(await asyncio.to_thread(services.registry.documents.get, "batch", batch_id))


@router.post("/{batch_id}/cancel")
async def cancel_batch(batch_id: str, services: ServicesDep) -> Batch:
    """Ask no more of a batch's requests; what has been answered is in its files."""
    record = await asyncio.to_thread(services.registry.documents.edit, "batch", batch_id, _cancelling)
    if services.batches is not None:
        services.batches.cancel(batch_id)
    return batch_object(record)


def batch_object(record: DocumentRecord) -> Batch:
    data = record.data
    counts, tokens = data["counts"], (data["counts"].get("input_tokens", 0), data["counts"].get("output_tokens", 0))
    return Batch(
        id=record.id,
        endpoint=data["endpoint"],
        input_file_id=data["input_file_id"],
        completion_window=data["completion_window"],
        status=data["status"],
        errors=BatchFaults(data=data["faults"]) if data["faults"] else None,
        # Before the end they are names of nothing.
        output_file_id=data["output_file_id"] if data["status"] in FINISHED else None,
        error_file_id=data["error_file_id"] if data["status"] in FINISHED else None,
        created_at=unix_seconds(record.created_at),
        expires_at=data["expires_at"],
        request_counts=BatchCounts(
            total=data["total"], completed=counts.get("completed", 0), failed=counts.get("failed", 0)
        ),
        usage=BatchUsage(input_tokens=tokens[0], output_tokens=tokens[1], total_tokens=sum(tokens)),
        metadata=data["metadata"],
        **{name: data[name] for name in _TIMES if name in data},
    )


def _create(services: Services, body: BatchCreate) -> DocumentRecord:
    """
    Raises:
        UnknownError: there is no such file.
        ProblemError: it was uploaded for something else.
        ConflictError: another server has it.
    """
    file = services.registry.kept_files.get(body.input_file_id)
    if file.data["purpose"] != "batch":
        detail = f"`input_file_id`: {file.id!r} was uploaded for {file.data['purpose']!r}; upload it for 'batch'"
        raise ProblemError("invalid-request", detail, param="input_file_id")
    services.registry.kept_files.stored(file.id)
    seconds = int(body.completion_window[:-1]) * _SECONDS[body.completion_window[-1]]
    lifetime = body.output_expires_after
    data: dict[str, Any] = {
        "endpoint": body.endpoint,
        "input_file_id": file.id,
        "completion_window": body.completion_window,
        "metadata": body.metadata,
        "output_lifetime": lifetime.seconds if lifetime is not None else None,
        "key": current_key.get(),
        "server": services.registry.server,
        "status": "validating",
        "expires_at": int(time.time()) + seconds,
        "total": 0,
        **UNANSWERED,
    }
    return services.registry.documents.add("batch", data)


def _cancelling(data: dict[str, Any]) -> dict[str, Any]:
    if data["status"] in FINISHED:
        raise ConflictError(f"the batch is {data['status']} and can't be cancelled")
    return {"status": "cancelling", "cancelling_at": data.get("cancelling_at") or int(time.time())}
