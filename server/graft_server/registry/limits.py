"""Limits of keys and adapters in the tables: ``None`` is a row of before, or one that never had any."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from graft_client.schemas.limits import Limits
from graft_server.registry.models import Adapter
from graft_server.registry.visibility import EVERYTHING


def column(limits: Limits) -> dict[str, Any] | None:
    """As they are stored."""
    return limits.model_dump(exclude_none=True) or None


def of_row(stored: dict[str, Any] | None) -> Limits:
    return Limits.model_validate(stored or {})


def of_adapters(session: Session) -> dict[str, Limits]:
    """Those of every adapter that has any, by name, whoever asks: they hold for all."""
    query = select(Adapter.name, Adapter.limits).where(Adapter.limits.is_not(None))
    rows = session.execute(query.execution_options(**{EVERYTHING: True}))
    return {name: of_row(stored) for name, stored in rows}
