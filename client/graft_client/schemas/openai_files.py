"""The OpenAI-shaped files, and what the lists and notes of all kept objects have in common.

Field names follow OpenAI's public API reference.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field

from graft_client.schemas.common import RequestSchema, Schema

T = TypeVar("T")

#: What a caller notes on an object: up to 16 pairs.
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]

#: What a file can be uploaded for.
UploadPurpose = Literal["fine-tune", "batch"]

#: The paths that a batch can ask.
BatchEndpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]


class ListPage(Schema, Generic[T]):
    """Some of a list, in its order; the next page is asked for with ``after`` = ``last_id``."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class FileObject(Schema):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str = Field(
        description="`fine-tune` or `batch`; `fine-tune-results` or `batch_output` for what came of it."
    )
    status: Literal["processed"] = "processed"
    status_details: str | None = None


class FileDeleted(Schema):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchLine(RequestSchema):
    """One request of a batch's input file."""

    custom_id: str = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: BatchEndpoint
    body: dict[str, Any]
