"""Records of the registry as documents of the API."""

from __future__ import annotations

from graft_client.schemas.adapters import AdapterInfo, VersionInfo
from graft_client.schemas.datasets import DatasetFile, DatasetInfo
from graft_client.schemas.jobs import JobInfo
from graft_client.schemas.lifecycle import AliasEvent
from graft_client.schemas.routes import RouteEvent, RouteInfo, TargetFigures
from graft_server.registry.records import (
    AdapterRecord,
    AliasEventRecord,
    DatasetRecord,
    JobRecord,
    RouteEventRecord,
    RouteRecord,
    VersionRecord,
)


def version_info(record: VersionRecord) -> VersionInfo:
    lineage = record.lineage
    return VersionInfo(
        adapter=record.adapter,
        version=record.version,
        ref=record.ref,
        task=lineage.task,
        method=lineage.method,
        digest=record.digest,
        size_bytes=record.size_bytes,
        created_at=record.created_at,
        pinned=record.pinned,
        base_model=lineage.base_model,
        base_fingerprint=lineage.base_fingerprint,
        plugin=lineage.plugin,
        plugin_version=lineage.plugin_version,
        dataset=lineage.dataset,
        job=lineage.job,
        seed=lineage.seed,
        options=lineage.options,
        train_rows=lineage.train_rows,
        train_seconds=lineage.train_seconds,
        train_tokens=lineage.train_tokens,
        evaluation=lineage.evaluation,
    )


def adapter_info(record: AdapterRecord) -> AdapterInfo:
    return AdapterInfo(
        name=record.name,
        task=record.task,
        latest=record.latest.version,
        created_at=record.created_at,
        versions=[version_info(version) for version in record.versions],
        aliases=record.aliases,
        limits=record.limits,
    )


def alias_event(record: AliasEventRecord) -> AliasEvent:
    return AliasEvent(
        adapter=record.adapter,
        seq=record.seq,
        alias=record.alias,
        kind=record.kind,
        version=record.version,
        previous=record.previous,
        who=record.who,
        why=record.why,
        time=record.time,
        gate=record.gate,
    )


def route_info(record: RouteRecord, live: list[TargetFigures]) -> RouteInfo:
    return RouteInfo(
        name=record.name,
        task=record.task,
        revision=record.revision,
        spec=record.spec,
        updated_at=record.updated_at,
        live=live,
    )


def route_event(record: RouteEventRecord) -> RouteEvent:
    return RouteEvent(
        route=record.route,
        seq=record.seq,
        kind=record.kind,
        who=record.who,
        why=record.why,
        time=record.time,
        spec=record.spec,
    )


def dataset_info(record: DatasetRecord) -> DatasetInfo:
    return DatasetInfo(
        id=record.id,
        task=record.task,
        format=record.format,
        rows=record.rows,
        bad_rows=record.bad_rows,
        files=[DatasetFile(name=name, size_bytes=size, sha256=digest) for name, size, digest in record.files],
        created_at=record.created_at,
    )


def job_info(record: JobRecord) -> JobInfo:
    return JobInfo(
        id=record.id,
        state=record.state,
        task=record.task,
        adapter=record.adapter,
        dataset=record.dataset,
        method=record.method,
        options=record.options,
        progress=record.progress,
        version=record.version,
        error=record.error,
        attempts=record.attempts,
        server=record.claim.server if record.claim else None,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        train_seconds=record.train_seconds,
        train_tokens=record.train_tokens,
    )
