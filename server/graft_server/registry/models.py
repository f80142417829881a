"""The registry's tables. Only this package sees them; everyone else gets the records."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class UtcDateTime(TypeDecorator[datetime]):
    """A moment, stored without a zone and always in UTC, which SQLite would otherwise forget."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Table(DeclarativeBase):
    """Base of the tables; says how Python types are stored."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own class attribute
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


class Counter(Table):
    """A number that only grows, so that what it numbered is never numbered again, also after a delete."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(96), primary_key=True)
    last: Mapped[int] = mapped_column(BigInteger)


class Artefact(Table):
    """A stored folder. Several versions with the same content share it."""

    __tablename__ = "artefacts"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[list[Any]]
    created_at: Mapped[datetime]


class Adapter(Table):
    __tablename__ = "adapters"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    task: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[datetime]
    limits: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    versions: Mapped[list[Version]] = relationship(
        back_populates="owner", order_by="Version.number", cascade="all, delete-orphan"
    )
    aliases: Mapped[list[Alias]] = relationship(order_by="Alias.name", viewonly=True)


class Version(Table):
    """An immutable adapter version; only whether it is pinned changes. ``dataset`` and ``job`` are lineage: they
    outlive what they name.

    ``engine_id`` grows with each publication, so it also tells which version is the newer one.
    """

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("adapter", "number"),
        # The latest version of a task is asked for with every request that names the task alone.
        Index("ix_versions_task_engine_id", "task", "engine_id"),
    )

    engine_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    adapter: Mapped[str] = mapped_column(ForeignKey("adapters.name"))
    number: Mapped[int]
    digest: Mapped[str] = mapped_column(ForeignKey("artefacts.digest"), index=True)
    created_at: Mapped[datetime]
    task: Mapped[str] = mapped_column(String(64))
    method: Mapped[str] = mapped_column(String(64))
    rank: Mapped[int]
    base_model: Mapped[str] = mapped_column(Text)
    base_fingerprint: Mapped[str] = mapped_column(String(64))
    plugin: Mapped[str | None] = mapped_column(Text)
    plugin_version: Mapped[str | None] = mapped_column(Text)
    dataset: Mapped[str | None] = mapped_column(String(64))
    job: Mapped[str | None] = mapped_column(String(64))
    #: Of a checkpoint: the training step after which it was taken.
    step: Mapped[int | None] = mapped_column(BigInteger)
    seed: Mapped[int | None] = mapped_column(BigInteger)
    options: Mapped[dict[str, Any]]
    train_rows: Mapped[int | None] = mapped_column(BigInteger)
    train_seconds: Mapped[float | None]
    train_tokens: Mapped[int | None] = mapped_column(BigInteger)
    evaluation: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    pinned: Mapped[bool] = mapped_column(default=False, server_default=false())

    owner: Mapped[Adapter] = relationship(back_populates="versions")
    artefact: Mapped[Artefact] = relationship()


class Alias(Table):
    """A name for one version of an adapter, which can be moved to another. ``revision`` counts the moves, so that of
    two who saw the same one in place only one moves it."""

    __tablename__ = "aliases"

    adapter: Mapped[str] = mapped_column(ForeignKey("adapters.name"), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    engine_id: Mapped[int] = mapped_column(ForeignKey("versions.engine_id"), index=True)
    revision: Mapped[int]

    version: Mapped[Version] = relationship()


class AliasEvent(Table):
    """One entry of an adapter's history; ``seq`` counts from 1 within its name. It outlives what it tells of."""

    __tablename__ = "alias_events"

    adapter: Mapped[str] = mapped_column(String(64), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    alias: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    version: Mapped[int | None]
    previous: Mapped[int | None]
    who: Mapped[str] = mapped_column(String(128))
    why: Mapped[str] = mapped_column(Text)
    time: Mapped[datetime]
    gate: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class RouteRow(Table):
    """A name that leads to versions by weight. ``revision`` counts its changes."""

    __tablename__ = "routes"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    task: Mapped[str] = mapped_column(String(64))
    spec: Mapped[dict[str, Any]]
    revision: Mapped[int]
    updated_at: Mapped[datetime]


class RouteVersion(Table):
    """A version that a route needs, as a target, a shadow or a fallback."""

    __tablename__ = "route_versions"

    route: Mapped[str] = mapped_column(ForeignKey("routes.name"), primary_key=True)
    engine_id: Mapped[int] = mapped_column(
        ForeignKey("versions.engine_id"), primary_key=True, autoincrement=False, index=True
    )


class RouteEvent(Table):
    """One entry of a route's history; ``seq`` counts from 1 within its name. It outlives the route."""

    __tablename__ = "route_events"

    route: Mapped[str] = mapped_column(String(64), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(16))
    who: Mapped[str] = mapped_column(String(128))
    why: Mapped[str] = mapped_column(Text)
    time: Mapped[datetime]
    spec: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class Dataset(Table):
    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, unique=True)
    task: Mapped[str] = mapped_column(String(64), index=True)
    format: Mapped[str] = mapped_column(String(64))
    rows: Mapped[int] = mapped_column(BigInteger)
    bad_rows: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[list[Any]]
    created_at: Mapped[datetime]
    #: Whose it is, where it was stored by a caller who may not see everything.
    owner: Mapped[str | None] = mapped_column(String(64))


class Job(Table):
    """A training run. ``number`` orders jobs by creation, ``queue_number`` those that wait."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, unique=True)
    queue_number: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16), index=True)
    task: Mapped[str] = mapped_column(String(64))
    adapter: Mapped[str] = mapped_column(String(64))
    dataset: Mapped[str] = mapped_column(String(64), index=True)
    method: Mapped[str] = mapped_column(String(64))
    options: Mapped[dict[str, Any]]
    progress: Mapped[dict[str, Any]]
    version: Mapped[str | None] = mapped_column(String(96))
    error: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int]
    cancel_requested: Mapped[bool]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    train_seconds: Mapped[float | None]
    train_tokens: Mapped[int | None] = mapped_column(BigInteger)
    last_event: Mapped[int]
    #: Who works at it, and until when that server need not be heard of.
    server: Mapped[str | None] = mapped_column(String(32))
    leased_until: Mapped[datetime | None]


class Event(Table):
    """One entry of a job's history; ``seq`` counts from 1 within the job."""

    __tablename__ = "job_events"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    time: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]]


class Document(Table):
    """Something that a caller has the server keep; ``number`` orders them by creation."""

    __tablename__ = "documents"
    __table_args__ = (Index("ix_documents_kind_number", "kind", "number"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    number: Mapped[int] = mapped_column(BigInteger, unique=True)
    created_at: Mapped[datetime]
    owner: Mapped[str | None] = mapped_column(String(64))
    data: Mapped[dict[str, Any]]


class ApiKey(Table):
    """A caller's key. ``digest`` is the sha256 of its secret, which is stored nowhere. Revoked ones stay, so that a
    server that once had keys is never open again."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[Any]]
    adapters: Mapped[list[Any]]
    tenant: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    limits: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class AuditEntry(Table):
    """One change, written in the transaction that made it."""

    __tablename__ = "audit"

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    time: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(96))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(192))
    detail: Mapped[dict[str, Any]]


class ServerRow(Table):
    """A server of this registry: when it was last heard of, and the versions (``name@N``) that it had requests for."""

    __tablename__ = "servers"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    seen_at: Mapped[datetime]
    in_flight: Mapped[list[Any]]


class Setting(Table):
    __tablename__ = "settings"

    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


def now() -> datetime:
    """The present moment in UTC."""
    return datetime.now(UTC)
