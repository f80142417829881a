"""What the registry keeps, as immutable records: the rest of the server never sees an ORM object."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from graft_client.schemas.adapters import EvaluationSummary
from graft_client.schemas.jobs import JobProgress, JobState
from graft_client.schemas.lifecycle import AliasChange, GateReport
from graft_client.schemas.limits import UNSET, Limits
from graft_client.schemas.routes import RouteChange, RouteSpec
from graft_server.registry.stored import StoredFile, manifest_digest


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a version came from."""

    task: str
    method: str
    base_model: str
    base_fingerprint: str
    rank: int = 0
    plugin: str | None = None
    plugin_version: str | None = None
    dataset: str | None = None
    job: str | None = None
    step: int | None = None
    """Of a checkpoint: the training step after which it was taken."""
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    train_rows: int | None = None
    train_seconds: float | None = None
    train_tokens: int | None = None
    evaluation: EvaluationSummary | None = None


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """An immutable adapter version. ``path`` is the folder of its files; ``engine_id`` is never reused.
    ``pinned``, which can change, tells whether it keeps its slot in device memory."""

    adapter: str
    version: int
    engine_id: int
    digest: str
    path: Path
    size_bytes: int
    created_at: datetime
    lineage: Lineage
    files: tuple[str, ...] = ()
    """Names, relative to ``path``."""
    pinned: bool = False

    @property
    def ref(self) -> str:
        return f"{self.adapter}@{self.version}"


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    name: str
    task: str
    created_at: datetime
    versions: tuple[VersionRecord, ...]
    aliases: dict[str, int] = field(default_factory=dict)
    """Version numbers by alias."""
    limits: Limits = UNSET

    @property
    def latest(self) -> VersionRecord:
        return self.versions[-1]


@dataclass(frozen=True, slots=True)
class AliasRecord:
    """An alias as it is in place; ``revision`` is what a change of it is made from."""

    adapter: str
    name: str
    version: VersionRecord
    revision: int


@dataclass(frozen=True, slots=True)
class AliasEventRecord:
    """One entry of an adapter's history; ``gate`` is what was measured for it."""

    adapter: str
    seq: int
    alias: str
    kind: AliasChange
    version: int | None
    previous: int | None
    who: str
    why: str
    time: datetime
    gate: GateReport | None = None


@dataclass(frozen=True, slots=True)
class RouteRecord:
    """A route with every version that it names, by ``name@N``."""

    name: str
    task: str
    spec: RouteSpec
    revision: int
    updated_at: datetime
    versions: dict[str, VersionRecord]


@dataclass(frozen=True, slots=True)
class RouteEventRecord:
    """One entry of a route's history; ``spec`` is how the route was from then on."""

    route: str
    seq: int
    kind: RouteChange
    who: str
    why: str
    time: datetime
    spec: RouteSpec | None


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """``path`` is the folder that holds ``files`` under their own names."""

    id: str
    task: str
    format: str
    rows: int
    bad_rows: int
    files: tuple[tuple[str, int, str], ...]
    """Name, size in bytes, sha256."""
    path: Path
    created_at: datetime

    @property
    def digest(self) -> str:
        """That of the files, whatever their order."""
        return manifest_digest([StoredFile(*file) for file in self.files])


@dataclass(frozen=True, slots=True)
class Claim:
    """A server's right to work at a job. ``number`` counts the job's claims."""

    job: str
    server: str
    number: int


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One training run. ``folder`` holds its specification, checkpoints and result; ``claim`` is there while it is at
    work."""

    id: str
    state: JobState
    task: str
    adapter: str
    dataset: str
    method: str
    options: dict[str, Any]
    progress: JobProgress
    folder: Path
    version: str | None
    error: str | None
    attempts: int
    cancel_requested: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    train_seconds: float | None
    train_tokens: int | None
    claim: Claim | None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key, without its secret. ``digest`` is the secret's sha256 (hex)."""

    id: str
    name: str
    digest: str = field(repr=False)
    scopes: tuple[str, ...]
    adapters: tuple[str, ...]
    tenant: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    limits: Limits = UNSET

    def valid(self, at: datetime) -> bool:
        """Whether it opens anything at this moment."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One change: who did what to what."""

    seq: int
    time: datetime
    actor: str
    action: str
    target: str
    detail: dict[str, Any]
