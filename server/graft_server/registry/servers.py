"""The servers of one registry: what each is answering just now, and whose turn it is to do what one does for all."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from graft_server.registry.database import moment
from graft_server.registry.errors import ConflictError
from graft_server.registry.models import ServerRow, Setting, Version

#: What a server said counts for so long: it may be gone.
BELIEVED = timedelta(seconds=30)


def report(session: Session, server: str, in_flight: Iterable[str]) -> None:
    """Write down the versions that a server has requests for."""
    session.merge(ServerRow(id=server, seen_at=moment(session), in_flight=sorted(in_flight)))


def in_flight_elsewhere(session: Session, server: str) -> set[str]:
    """The versions that other servers said they have requests for."""
    since = moment(session) - BELIEVED
    rows = session.scalars(select(ServerRow).where(ServerRow.id != server, ServerRow.seen_at > since))
    return {ref for row in rows for ref in row.in_flight}


def others(session: Session, server: str) -> set[str]:
    """The other servers that were heard of lately and have not said that they end."""
    since = moment(session) - BELIEVED
    return set(session.scalars(select(ServerRow.id).where(ServerRow.id != server, ServerRow.seen_at > since)))


def leave(session: Session, server: str) -> None:
    """Write down that a server is no longer there."""
    session.execute(delete(ServerRow).where(ServerRow.id == server))


def refuse_in_flight(session: Session, server: str, versions: Iterable[Version]) -> None:
    """Raises:
    ConflictError: another server has requests for one of the versions.
    """
    busy = in_flight_elsewhere(session, server)
    for version in versions:
        ref = f"{version.adapter}@{version.number}"
        if ref in busy:
            raise ConflictError(f"requests for {ref} are in flight on another server; try again when they are over")


def take_turn(session: Session, name: str, every: timedelta) -> bool:
    """Whether nobody did ``name`` within the last ``every``; then it is the caller's turn, and nobody else's."""
    at, key = moment(session), f"turn:{name}"
    last = session.get(Setting, key, with_for_update=True)
    if last is not None and datetime.fromisoformat(last.value) + every > at:
        return False
    session.merge(Setting(key=key, value=at.isoformat()))
    return True
