"""Datasets: files of examples for one task, addressed by their content."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from graft_client.schemas.common import FieldError, Schema


class DatasetFile(Schema):
    name: str
    size_bytes: int
    sha256: str


class DatasetInfo(Schema):
    """A stored dataset. ``id`` is derived from content and task, so the same files are stored once."""

    id: str
    task: str
    format: str
    rows: int
    bad_rows: int
    files: list[DatasetFile]
    created_at: datetime


class DatasetCheck(Schema):
    """What reading files as a dataset found; nothing was stored."""

    task: str
    format: str | None
    rows: int
    bad_rows: int
    errors: list[FieldError]
    examples: list[dict[str, Any]]
    train_rows: int
    test_rows: int
