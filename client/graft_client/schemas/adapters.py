"""Adapters and their immutable versions."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from graft_client.schemas.common import MetricReport, Schema
from graft_client.schemas.limits import UNSET, Limits


class EvaluationSummary(Schema):
    """Base and adapter on the same held-out rows."""

    adapter: MetricReport
    base: MetricReport | None = None
    baselines: dict[str, MetricReport] = {}


class VersionInfo(Schema):
    """An adapter version with its lineage."""

    adapter: str
    version: int
    ref: str = Field(description="`name@N`.")
    task: str
    method: str
    digest: str = Field(description="sha256 over the version's files.")
    size_bytes: int
    created_at: datetime
    pinned: bool = Field(False, description="It keeps its slot in device memory.")
    base_model: str
    base_fingerprint: str
    plugin: str | None = None
    plugin_version: str | None = None
    dataset: str | None = None
    job: str | None = None
    seed: int | None = None
    options: dict[str, Any] = {}
    train_rows: int | None = None
    train_seconds: float | None = None
    train_tokens: int | None = None
    evaluation: EvaluationSummary | None = None


class AdapterInfo(Schema):
    name: str
    task: str
    latest: int
    created_at: datetime
    versions: list[VersionInfo]
    aliases: dict[str, int] = Field({}, description="Version numbers by alias.")
    limits: Limits = Field(UNSET, description="Its own; where they say nothing, the server's settings hold.")
