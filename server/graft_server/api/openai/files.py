"""``/v1/files``: what fine-tuning jobs learn from, and what goes into and comes out of batches."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

from graft_client.schemas.openai_files import FileDeleted, FileObject, ListPage, UploadPurpose
from graft_server.api.deps import ServicesDep
from graft_server.api.openai.file_rows import check_rows
from graft_server.api.openai.pages import After, Order, page_of, unix_seconds
from graft_server.api.uploads import staged
from graft_server.registry.documents import DocumentRecord
from graft_server.registry.errors import ConflictError
from graft_server.registry.reading import hold
from graft_server.services import Services
from graft_server.serving.batches import FINISHED

router = APIRouter(prefix="/v1/files", tags=["openai"])

#: How long a file that expires can be kept, in seconds, as OpenAI's service has it.
Lifetime = Annotated[int | None, Form(alias="expires_after[seconds]", ge=3600, le=2592000)]


@router.post("")
async def upload_file(
    services: ServicesDep,
    file: Annotated[UploadFile, File()],
    purpose: Annotated[UploadPurpose, Form()],
    anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Lifetime = None,
) -> FileObject:
    """Store a file of JSON lines for `fine-tune` or `batch`; a bad row refuses it."""
    async with staged([file], services.uploads) as (path,):
        await asyncio.to_thread(check_rows, services.host, path, purpose)
        record = await asyncio.to_thread(
            services.registry.kept_files.add,
            path,
            filename=path.name,
            purpose=purpose,
            expires_at=None if seconds is None else int(time.time()) + seconds,
        )
    return file_object(record)


@router.get("")
async def list_files(
    services: ServicesDep,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
    purpose: str | None = None,
) -> ListPage[FileObject]:
    """The stored files, the newest first; of one `purpose`."""
    records = await asyncio.to_thread(
        services.registry.kept_files.list, after=after, limit=limit + 1, oldest_first=order == "asc", purpose=purpose
    )
    return page_of([file_object(record) for record in records], limit)


@router.get("/{file_id}")
async def show_file(file_id: str, services: ServicesDep) -> FileObject:
    """One file."""
    return file_object(await asyncio.to_thread(services.registry.kept_files.get, file_id))


@router.get("/{file_id}/content", response_class=FileResponse)
async def file_content(file_id: str, services: ServicesDep) -> FileResponse:
    """A file as it was uploaded, or as a batch wrote it."""
    record = await asyncio.to_thread(services.registry.kept_files.get, file_id)
    stored = await asyncio.to_thread(services.registry.kept_files.stored, record.id)
    held = await hold(services.registry, stored)
    return _Held(held, stored.content, media_type="application/octet-stream", filename=record.data["filename"])


@router.delete("/{file_id}")
async def delete_file(file_id: str, services: ServicesDep) -> FileDeleted:
    """Delete a file. What jobs learned from it, and the datasets they made of it, stay."""
    await asyncio.to_thread(_delete, services, file_id)
    return FileDeleted(id=file_id)


class _Held(FileResponse):
    """A stored file, which stays where it is until it is sent or the caller has hung up."""

    def __init__(self, held: ExitStack, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


def file_object(record: DocumentRecord) -> FileObject:
    return FileObject(
        id=record.id,
        bytes=record.data["bytes"],
        created_at=unix_seconds(record.created_at),
        expires_at=record.data.get("expires_at"),
        filename=record.data["filename"],
        purpose=record.data["purpose"],
    )


def _delete(services: Services, file_id: str) -> None:
    """
    Raises:
        UnknownError: there is none.
        ConflictError: a batch that is not finished needs it.
    """
    services.registry.kept_files.get(file_id)
    users = services.registry.documents.list(
        "batch", limit=1, keep=lambda data: data["input_file_id"] == file_id and data["status"] not in FINISHED
    )
    if users:
        raise ConflictError(f"file {file_id!r} is in use by batch {users[0].id!r}, which is not finished")
    services.registry.kept_files.remove(file_id)
