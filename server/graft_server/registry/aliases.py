"""Aliases such as ``production``: which version each stands for, moving them, and the history of the moves.

A move is one transaction, decided by the revision that its maker saw in place. Of two at the same time one wins,
on every database, and the other is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import CursorResult, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload

from graft_client.schemas.lifecycle import AliasChange, GateReport
from graft_server.registry import adapters
from graft_server.registry.artefacts import ArtefactStore
from graft_server.registry.database import Database, next_number
from graft_server.registry.errors import ConflictError, InvalidNameError
from graft_server.registry.models import Adapter, Alias, AliasEvent, Version, now
from graft_server.registry.records import AliasEventRecord, AliasRecord, VersionRecord

#: Moves of an alias, as opposed to what was refused.
_MOVES = ("promote", "rollback", "remove")


class Aliases:
    """The aliases of all adapters. Every method is one transaction."""

    def __init__(self, database: Database, store: ArtefactStore) -> None:
        self._database = database
        self._store = store

    def get(self, adapter: str, name: str) -> AliasRecord | None:
        """The alias as it is in place, or ``None`` where it stands for nothing yet.

        Raises:
            UnknownError: there is no such adapter.
            InvalidNameError: no alias can be called so.
        """
        check_alias(name)
        with self._database.read() as session:
            adapters.find_adapter(session, adapter)
            alias = _find(session, adapter, name)
            return None if alias is None else self._record(alias)

    def promote(
        self,
        adapter: str,
        name: str,
        number: int,
        *,
        seen: AliasRecord | None,
        who: str,
        why: str = "",
        gate: GateReport | None = None,
    ) -> AliasEventRecord:
        """Let an alias stand for a version. ``seen`` is what ``get`` gave when this was decided.

        Raises:
            UnknownError: there is no such version.
            InvalidNameError: no alias can be called so.
            ConflictError: the alias was moved after ``seen``, or stands for the version already.
        """
        check_alias(name)
        try:
            with self._database.write() as session:
                version = adapters.find_version(session, adapter, number)
                if seen is not None and seen.version.version == number:
                    raise ConflictError(f"{adapter}@{name} stands for {adapter}@{number} already")
                self._move(session, adapter, name, version, seen)
                return _append(session, adapter, name, "promote", number, seen, who, why, gate)
        except IntegrityError:
            raise self._moved(adapter, name) from None

    def refuse(
        self, adapter: str, name: str, number: int, *, seen: AliasRecord | None, who: str, why: str, gate: GateReport
    ) -> AliasEventRecord:
        """Note in the history that a gate kept a version back."""
        with self._database.write() as session:
            return _append(session, adapter, name, "refused", number, seen, who, why, gate)

    def rollback(self, adapter: str, name: str, *, who: str, why: str = "") -> AliasEventRecord:
        """Go back to the version that was in place before; again, and it goes back further.

        Versions that were deleted since are passed over.

        Raises:
            UnknownError: there is no such adapter.
            ConflictError: the alias stands for nothing, there is no earlier version, or it is just being moved.
        """
        check_alias(name)
        with self._database.write() as session:
            adapters.find_adapter(session, adapter)
            alias = _find(session, adapter, name)
            if alias is None:
                raise ConflictError(f"{adapter}@{name} stands for no version, so there is nothing to go back from")
            seen = self._record(alias)
            target = _before(session, alias)
            if target is None:
                raise ConflictError(f"nothing that was {adapter}@{name} before {seen.version.ref} is left")
            self._move(session, adapter, name, target, seen)
            return _append(session, adapter, name, "rollback", target.number, seen, who, why)

    def remove(self, adapter: str, name: str, *, who: str, why: str = "") -> AliasEventRecord:
        """Let an alias stand for nothing; its history is kept.

        Raises:
            UnknownError: there is no such adapter.
            ConflictError: the alias stands for nothing.
        """
        check_alias(name)
        with self._database.write() as session:
            adapters.find_adapter(session, adapter)
            alias = _find(session, adapter, name)
            if alias is None:
                raise ConflictError(f"{adapter}@{name} stands for no version")
            seen = self._record(alias)
            session.execute(delete(Alias).where(Alias.adapter == adapter, Alias.name == name))
            return _append(session, adapter, name, "remove", None, seen, who, why)

    def history(self, adapter: str, name: str | None = None) -> list[AliasEventRecord]:
        """What became of an adapter's aliases, or of one, the newest first. It outlives the adapter.

        Raises:
            UnknownError: there is neither such an adapter nor a history of one.
        """
        with self._database.read() as session:
            query = select(AliasEvent).where(AliasEvent.adapter == adapter).order_by(AliasEvent.seq.desc())
            events = list(session.scalars(query))
            if not events:
                adapters.find_adapter(session, adapter)
            return [event_record(event) for event in events if name in (None, event.alias)]

    def in_use(self) -> dict[int, str]:
        """What must stay, by engine id: the versions that aliases stand for and those a rollback would go to."""
        with self._database.read() as session:
            kept: dict[int, str] = {}
            for alias in session.scalars(select(Alias).options(joinedload(Alias.version))):
                if (before := _before(session, alias)) is not None:
                    kept.setdefault(before.engine_id, f"what a rollback of {alias.adapter}@{alias.name} goes to")
                kept[alias.engine_id] = f"is {alias.adapter}@{alias.name}"
            return kept

    def _move(self, session: Session, adapter: str, name: str, version: Version, seen: AliasRecord | None) -> None:
        if seen is None:
            # Somebody who was faster has inserted the row, which the primary key tells.
            row = {"adapter": adapter, "name": name, "engine_id": version.engine_id, "revision": 1}
            session.execute(insert(Alias).values(row))
            return
        moved = session.execute(
            update(Alias)
            .where(Alias.adapter == adapter, Alias.name == name, Alias.revision == seen.revision)
            .where(Alias.engine_id == seen.version.engine_id)
            .values(engine_id=version.engine_id, revision=Alias.revision + 1)
            .execution_options(synchronize_session=False)
        )
        if cast("CursorResult[Any]", moved).rowcount != 1:
            raise self._moved(adapter, name)

    def _moved(self, adapter: str, name: str) -> ConflictError:
        with self._database.read() as session:
            alias = _find(session, adapter, name)
            if alias is None:
                return ConflictError(f"{adapter}@{name} or its version was removed meanwhile; nothing was changed")
            event = session.scalar(
                select(AliasEvent)
                .where(AliasEvent.adapter == adapter, AliasEvent.alias == name, AliasEvent.kind.in_(_MOVES))
                .order_by(AliasEvent.seq.desc())
                .limit(1)
            )
            by = f" by {event.who}" if event is not None else ""
            return ConflictError(
                f"{adapter}@{name} was moved to {adapter}@{alias.version.number}{by} meanwhile; nothing was changed"
            )

    def _record(self, alias: Alias) -> AliasRecord:
        version: VersionRecord = adapters.version_record(alias.version, self._store)
        return AliasRecord(adapter=alias.adapter, name=alias.name, version=version, revision=alias.revision)


def check_alias(name: str) -> None:
    """Raises:
    InvalidNameError: no alias can be called so.
    """
    if name == adapters.LATEST:
        raise InvalidNameError(f"{name!r} can't be an alias: it stands for the version published last")
    if not adapters.ALIAS.fullmatch(name):
        raise InvalidNameError(
            f"{name!r} can't be an alias: use 1 to 64 lower-case letters, digits, hyphens, underscores and dots, "
            "starting with a letter"
        )


def event_record(event: AliasEvent) -> AliasEventRecord:
    return AliasEventRecord(
        adapter=event.adapter,
        seq=event.seq,
        alias=event.alias,
        kind=cast("AliasChange", event.kind),
        version=event.version,
        previous=event.previous,
        who=event.who,
        why=event.why,
        time=event.time,
        gate=None if event.gate is None else GateReport.model_validate(event.gate),
    )


def _find(session: Session, adapter: str, name: str) -> Alias | None:
    return session.get(Alias, (adapter, name), options=[joinedload(Alias.version).joinedload(Version.artefact)])


def _append(
    session: Session,
    adapter: str,
    alias: str,
    kind: AliasChange,
    number: int | None,
    seen: AliasRecord | None,
    who: str,
    why: str,
    gate: GateReport | None = None,
) -> AliasEventRecord:
    event = AliasEvent(
        adapter=adapter,
        seq=next_number(session, f"history:{adapter}"),
        alias=alias,
        kind=kind,
        version=number,
        previous=seen.version.version if seen is not None else None,
        who=who,
        why=why,
        time=now(),
        gate=None if gate is None else gate.model_dump(mode="json"),
    )
    session.add(event)
    session.flush()
    return event_record(event)


def _before(session: Session, alias: Alias) -> Version | None:
    """The version that was in place before the present one, of those that are left."""
    moves = session.execute(
        select(AliasEvent.kind, AliasEvent.version)
        .where(AliasEvent.adapter == alias.adapter, AliasEvent.alias == alias.name)
        .order_by(AliasEvent.seq)
    )
    numbers = _places((kind, version) for kind, version in moves)
    versions = {
        version.number: version
        for version in session.scalars(
            select(Version)
            .join(Adapter)
            .where(Version.adapter == alias.adapter, Version.number.in_(numbers))
            .options(joinedload(Version.artefact))
        )
    }
    present = alias.version.number
    return next((versions[number] for number in reversed(numbers) if number in versions and number != present), None)


def _places(moves: Iterable[tuple[str, int | None]]) -> list[int]:
    """The versions to go back through, the present one last: a rollback takes away what it went back from."""
    places: list[int] = []
    for kind, version in moves:
        match kind:
            case "promote" if version is not None:
                places.append(version)
            case "rollback":
                while places and places[-1] != version:
                    places.pop()
            case "remove":
                places.clear()
    return places
