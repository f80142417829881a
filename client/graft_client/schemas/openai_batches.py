"""The OpenAI-shaped batches. Field names follow OpenAI's public API reference."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from graft_client.schemas.common import RequestSchema, Schema
from graft_client.schemas.openai_files import BatchEndpoint, Metadata

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


class OutputLifetime(RequestSchema):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2592000)


class BatchCreate(RequestSchema):
    """A file of requests to answer in the background."""

    input_file_id: str = Field(description="A file uploaded for `batch`.")
    endpoint: BatchEndpoint
    completion_window: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}[smhd]$")] = Field(
        description="`24h` with OpenAI's service; any time in `s`, `m`, `h` or `d` here."
    )
    metadata: Metadata | None = None
    output_expires_after: OutputLifetime | None = None


class BatchFault(Schema):
    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchFaults(Schema):
    object: Literal["list"] = "list"
    data: list[BatchFault]


class BatchCounts(Schema):
    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchUsage(Schema):
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: dict[str, int] = {"cached_tokens": 0}
    output_tokens_details: dict[str, int] = {"reasoning_tokens": 0}


class Batch(Schema):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    input_file_id: str
    completion_window: str
    status: BatchStatus
    errors: BatchFaults | None = Field(None, description="Why the whole batch has failed.")
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: BatchCounts = BatchCounts()
    usage: BatchUsage = BatchUsage()
    metadata: Metadata | None = None
