"""The server's state: health, engine, queues."""

from __future__ import annotations

from pydantic import Field

from graft_client.schemas.common import Schema


class EngineStatus(Schema):
    name: str
    state: str = Field(description="`starting`, `ready`, `asleep`, `rebuilding`, `stopped` or `failed`.")
    device: str | None = None
    dtype: str | None = None
    restarts: int = 0
    running: int = Field(0, description="Sequences that are computed.")
    waiting: int = Field(0, description="Sequences that wait in the engine: for memory, or for their adapter.")
    loaded_adapters: list[str] = []
    slots: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    generated_tokens: int = 0
    tokens_per_second: float = Field(0.0, description="Generated over the last ten seconds.")
    preemptions: int = Field(0, description="Sequences that gave their memory back and were computed again.")
    reused_tokens: int = Field(0, description="Prompt tokens found in the KV cache instead of computed.")
    evictions: int = Field(0, description="Adapters that left their slot for another one.")
    stats_age_seconds: float = Field(0.0, description="Since the engine told its figures; it grows while it hangs.")
    error: str | None = None


class BaseModelStatus(Schema):
    name: str
    fingerprint: str | None = None
    architecture: str | None = None
    context_length: int | None = None
    parameters: int | None = None
    path: str | None = Field(None, description="Its folder, on the server's machine.")


class PinnedVersion(Schema):
    """A version that is to keep its slot."""

    ref: str = Field(description="`name@N`.")
    loaded: bool = Field(description="It is in its slot.")
    error: str | None = Field(None, description="Why it could not be loaded when the server started.")


class AdapterTraffic(Schema):
    """What one adapter version, or the base model, has to do."""

    ref: str = Field(description="`name@N`, or `base`.")
    loaded: bool = Field(description="It is in a slot; the base model always is ready.")
    running: int = Field(0, description="Requests in the engine.")
    waiting: int = Field(0, description="Requests waiting to enter the engine.")
    tokens_per_second: float = Field(0.0, description="Generated over the last ten seconds.")


class ServerStatus(Schema):
    version: str
    name: str = Field("", description="The server's own among those of its registry, as its data folder keeps it.")
    ready: bool
    uptime_seconds: float
    base_model: BaseModelStatus
    engine: EngineStatus
    adapters: int
    versions: int
    tasks: list[str]
    pinned: list[PinnedVersion] = []
    queued_requests: int = Field(description="Requests waiting to enter the engine.")
    admitted_requests: int = Field(0, description="Requests that have entered the engine.")
    queue_age_seconds: float = Field(0.0, description="How long the oldest waiting request has waited.")
    traffic: list[AdapterTraffic] = Field([], description="What is loaded or was asked lately, the busiest first.")
    jobs: dict[str, int] = Field(description="Number of jobs by state.")
    servers: int = Field(1, description="Servers of the registry that were heard of lately, this one included.")
    warnings: list[str] = Field([], description="What whoever runs the servers should change.")


class Health(Schema):
    status: str
    detail: str | None = None
