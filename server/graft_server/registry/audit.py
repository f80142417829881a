"""The log of changes. Each row that is written, changed or deleted leaves an entry in the same transaction, whichever
code did it: a change without its entry can't be committed.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, event, inspect, select
from sqlalchemy.orm import Mapper, Session

from graft_server.registry.models import Artefact, AuditEntry, Counter, Event, ServerRow, Setting, Table, Version, now
from graft_server.registry.records import AuditRecord
from graft_server.registry.visibility import actor

#: Books of the registry itself, and what is a history already.
_NOT_LOGGED = (Artefact, AuditEntry, Counter, Event, ServerRow, Setting)
#: What changes all the time while nobody does anything, and what nobody should read.
_LEFT_OUT = frozenset(
    {"data", "progress", "last_event", "attempts", "files", "digest", "evaluation", "train_tokens", "leased_until"}
)
_COUNTER = "audit"


def entries(session: Session, target: str | None, before: int | None, limit: int) -> list[AuditEntry]:
    """The newest first."""
    query = select(AuditEntry).order_by(AuditEntry.seq.desc()).limit(limit)
    if target is not None:
        query = query.where(AuditEntry.target == target)
    if before is not None:
        query = query.where(AuditEntry.seq < before)
    return list(session.scalars(query))


def newest(session: Session) -> int:
    """The number of the last entry, which grows with every change; 0 before the first one."""
    return session.scalar(select(Counter.last).where(Counter.name == _COUNTER)) or 0


def record(row: AuditEntry) -> AuditRecord:
    return AuditRecord(
        seq=row.seq, time=row.time, actor=row.actor, action=row.action, target=row.target, detail=row.detail
    )


@event.listens_for(Table, "after_insert", propagate=True)
def _on_insert(mapper: Mapper[Any], connection: Connection, row: Table) -> None:
    _log(mapper, connection, row, "create", {})


@event.listens_for(Table, "after_update", propagate=True)
def _on_update(mapper: Mapper[Any], connection: Connection, row: Table) -> None:
    state = inspect(row)
    changed = {
        attribute.key: _plain(getattr(row, attribute.key))
        for attribute in mapper.column_attrs
        if attribute.key not in _LEFT_OUT and state.attrs[attribute.key].history.has_changes()
    }
    if changed:
        _log(mapper, connection, row, "change", changed)


@event.listens_for(Table, "after_delete", propagate=True)
def _on_delete(mapper: Mapper[Any], connection: Connection, row: Table) -> None:
    _log(mapper, connection, row, "delete", {})


def _log(mapper: Mapper[Any], connection: Connection, row: Table, verb: str, detail: dict[str, Any]) -> None:
    if isinstance(row, _NOT_LOGGED):
        return
    kind = mapper.class_.__name__.lower()
    names = [str(value) for value in mapper.primary_key_from_instance(row)]
    target = f"{row.adapter}@{row.number}" if isinstance(row, Version) else "/".join(names)
    counters, log = Counter.__table__, AuditEntry.__table__
    # Counted as everything else here, and by the connection: a session can't be asked in the middle of its flush.
    last = connection.scalar(select(counters.c.last).where(counters.c.name == _COUNTER).with_for_update())
    if last is None:
        connection.execute(counters.insert().values(name=_COUNTER, last=1))  # type: ignore[attr-defined]
    else:
        grown = counters.update().where(counters.c.name == _COUNTER).values(last=last + 1)  # type: ignore[attr-defined]
        connection.execute(grown)
    entry = {"seq": (last or 0) + 1, "time": now(), "actor": actor.get(), "action": f"{kind}.{verb}"}
    connection.execute(log.insert().values(**entry, target=target, detail=detail))  # type: ignore[attr-defined]


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
