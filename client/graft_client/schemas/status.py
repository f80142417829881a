"""The server's state: health, engine, queues."""

from __future__ import annotations

from pydantic import Field

from graft_client.schemas.common import Schema


class EngineStatus(Schema):
    name: str
    state: str = Field(description="`starting`, `ready`, `rebuilding`, `stopped` or `failed`.")
    device: str | None = None
    dtype: str | None = None
    restarts: int = 0
    running: int = 0
    waiting: int = 0
    loaded_adapters: list[str] = []
    slots: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    generated_tokens: int = 0
    tokens_per_second: float = Field(0.0, description="Generated over the last ten seconds.")
    error: str | None = None


class BaseModelStatus(Schema):
    name: str
    fingerprint: str | None = None
    architecture: str | None = None
    context_length: int | None = None
    parameters: int | None = None
    path: str | None = Field(None, description="Its folder, on the server's machine.")


class ServerStatus(Schema):
    version: str
    ready: bool
    uptime_seconds: float
    base_model: BaseModelStatus
    engine: EngineStatus
    adapters: int
    versions: int
    tasks: list[str]
    queued_requests: int
    jobs: dict[str, int] = Field(description="Number of jobs by state.")


class Health(Schema):
    status: str
    detail: str | None = None
