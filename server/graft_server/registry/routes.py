"""Routes: names that lead to versions by weight. Which versions a route needs is kept beside it by foreign keys, so
that no version of a route can be deleted, on any database.

A change is one transaction, decided by the revision that its maker saw.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import CursorResult, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload

from graft_client.schemas.routes import RouteChange, RouteSpec
from graft_server.registry import adapters
from graft_server.registry.artefacts import ArtefactStore
from graft_server.registry.database import Database, next_number
from graft_server.registry.errors import ConflictError, UnknownError
from graft_server.registry.models import Adapter, Counter, RouteEvent, RouteRow, RouteVersion, Version, now
from graft_server.registry.records import RouteEventRecord, RouteRecord, VersionRecord
from graft_server.registry.visibility import EVERYTHING

BASE = "base"


class Routes:
    """All routes. Every method is one transaction."""

    def __init__(self, database: Database, store: ArtefactStore) -> None:
        self._database = database
        self._store = store

    def find(self, name: str) -> RouteRecord | None:
        """The route of this name, or ``None``."""
        with self._database.read() as session:
            row = session.get(RouteRow, name)
            return None if row is None else route_record(session, row, self._store)

    def get(self, name: str) -> RouteRecord:
        """Raises:
        UnknownError: there is none, with the nearest name.
        """
        with self._database.read() as session:
            return route_record(session, _row(session, name), self._store)

    def all(self) -> list[RouteRecord]:
        """Every route, by name."""
        with self._database.read() as session:
            rows = session.scalars(select(RouteRow).order_by(RouteRow.name))
            return [route_record(session, row, self._store) for row in rows]

    def set(
        self,
        name: str,
        spec: RouteSpec,
        *,
        who: str,
        why: str = "",
        revision: int | None = None,
        task: str | None = None,
    ) -> RouteRecord:
        """Make a route or replace it, if it still has the ``revision`` that the caller saw (0: there is none).
        With ``task``, its versions must serve that.

        Aliases in ``spec`` become the versions that they stand for now.

        Raises:
            InvalidNameError: no route can be called so.
            UnknownError: a version does not exist.
            ConflictError: an adapter has this name, the versions serve different tasks, one is named twice, or
                somebody else has changed the route.
        """
        adapters.check_name(name)
        try:
            with self._database.write() as session:
                if session.get(Adapter, name) is not None:
                    raise ConflictError(f"{name!r} is an adapter; a route needs a name of its own")
                fixed, versions = _fixed(session, spec)
                row = session.get(RouteRow, name)
                seen = row.revision if row is not None else 0
                if revision is not None and revision != seen:
                    raise _changed(name)
                serves = next(iter(versions.values())).task
                if task not in (None, serves):
                    raise ConflictError(
                        f"route {name!r} is the one of task {task!r}, but its versions serve {serves!r}"
                    )
                self._write(session, name, serves, fixed, versions, seen)
                _append(session, name, "set", who, why, fixed)
                session.expire_all()
                return route_record(session, _row(session, name), self._store)
        except IntegrityError:
            raise _changed(name) from None

    def trip(self, name: str, ref: str, *, revision: int, why: str) -> RouteRecord | None:
        """Take a canary's weight from it, which the heaviest target gets; ``None`` where somebody has changed the
        route after ``revision``, so that nothing is to be done any more."""
        try:
            with self._database.write() as session:
                row = session.get(RouteRow, name)
                if row is None or row.revision != revision:
                    return None
                spec = without(RouteSpec.model_validate(row.spec), ref)
                _, versions = _fixed(session, spec)
                self._write(session, name, row.task, spec, versions, revision)
                _append(session, name, "guard", "guard", why, spec)
                session.expire_all()
                return route_record(session, _row(session, name), self._store)
        except (ConflictError, IntegrityError):
            return None

    def delete(self, name: str, *, who: str, why: str = "") -> None:
        """Raises:
        UnknownError: there is none.
        """
        with self._database.write() as session:
            # One that is made again under its name goes on counting: what knew the old one must tell them apart.
            _outnumber(session, name, _row(session, name).revision)
            session.execute(delete(RouteVersion).where(RouteVersion.route == name))
            session.execute(delete(RouteRow).where(RouteRow.name == name))
            _append(session, name, "delete", who, why, None)

    def history(self, name: str) -> list[RouteEventRecord]:
        """What became of a route, the newest first. It outlives the route.

        Raises:
            UnknownError: there is neither such a route nor a history of one.
        """
        with self._database.read() as session:
            query = select(RouteEvent).where(RouteEvent.route == name).order_by(RouteEvent.seq.desc())
            events = list(session.scalars(query))
            if not events:
                _row(session, name)
            return [_event_record(event) for event in events]

    def in_use(self) -> dict[int, str]:
        """The versions that routes need, by engine id, with which route that is."""
        with self._database.read() as session:
            rows = session.scalars(select(RouteVersion).order_by(RouteVersion.route))
            return {row.engine_id: f"is in route {row.route}" for row in rows}

    def _write(
        self, session: Session, name: str, task: str, spec: RouteSpec, versions: dict[str, Version], seen: int
    ) -> None:
        values = {"task": task, "spec": spec.model_dump(mode="json"), "updated_at": now()}
        if seen == 0:
            session.execute(insert(RouteRow).values(name=name, revision=next_number(session, _counter(name)), **values))
        else:
            changed = session.execute(
                update(RouteRow)
                .where(RouteRow.name == name, RouteRow.revision == seen)
                .values(revision=seen + 1, **values)
                .execution_options(synchronize_session=False)
            )
            if cast("CursorResult[Any]", changed).rowcount != 1:
                raise _changed(name)
        session.execute(delete(RouteVersion).where(RouteVersion.route == name))
        rows = [{"route": name, "engine_id": each.engine_id} for each in versions.values()]
        session.execute(insert(RouteVersion), rows)


def without(spec: RouteSpec, ref: str) -> RouteSpec:
    """The route with the weight of one target moved to the heaviest of the others."""
    lost = sum(target.weight for target in spec.targets if target.ref == ref)
    others = [target for target in spec.targets if target.ref != ref]
    heir = max(others, key=lambda target: target.weight).ref
    weights = {ref: -lost, heir: lost}
    targets = [
        target.model_copy(update={"weight": target.weight + weights.get(target.ref, 0.0)}) for target in spec.targets
    ]
    return spec.model_copy(update={"targets": targets})


def refuse_routed(session: Session, versions: Iterable[Version]) -> None:
    """Raises:
    ConflictError: a route needs one of the versions.
    """
    by_id = {version.engine_id: version for version in versions}
    row = session.scalar(
        select(RouteVersion).where(RouteVersion.engine_id.in_(by_id)).order_by(RouteVersion.route).limit(1)
    )
    if row is not None:
        version = by_id[row.engine_id]
        # A route that the caller may not see is not named.
        seen = session.scalar(select(RouteRow.name).where(RouteRow.name == row.route))
        where = (
            f"in route {seen!r}: change or delete the route first" if seen else "in a route: ask an admin to change it"
        )
        raise ConflictError(f"{version.adapter}@{version.number} is {where}")


def route_record(session: Session, row: RouteRow, store: ArtefactStore) -> RouteRecord:
    query = (
        select(Version)
        .join(RouteVersion, RouteVersion.engine_id == Version.engine_id)
        .where(RouteVersion.route == row.name)
        .options(joinedload(Version.artefact))
        .execution_options(**{EVERYTHING: True})
    )
    versions: dict[str, VersionRecord] = {}
    for version in session.scalars(query):
        versions[f"{version.adapter}@{version.number}"] = adapters.version_record(version, store)
    return RouteRecord(
        name=row.name,
        task=row.task,
        spec=RouteSpec.model_validate(row.spec),
        revision=row.revision,
        updated_at=row.updated_at,
        versions=versions,
    )


def _fixed(session: Session, spec: RouteSpec) -> tuple[RouteSpec, dict[str, Version]]:
    """The route with a version number for each name, and those versions by ``name@N``."""
    versions: dict[str, Version] = {}

    def fix(ref: str) -> str:
        if ref == BASE:
            return ref
        version = adapters.find_version(session, *adapters.parse_ref(ref))
        versions[fixed := f"{version.adapter}@{version.number}"] = version
        return fixed

    fixed = spec.model_copy(
        update={
            "targets": [target.model_copy(update={"ref": fix(target.ref)}) for target in spec.targets],
            "shadow": None if spec.shadow is None else fix(spec.shadow),
            "fallback": [fix(ref) for ref in spec.fallback],
        }
    )
    refs = [target.ref for target in fixed.targets]
    for ref in refs:
        if refs.count(ref) > 1:
            raise ConflictError(f"{ref} is named twice; give it one weight")
    if set(refs) == {BASE}:
        raise ConflictError("a route leads to an adapter version at least; for the base alone, ask for `base`")
    by_task = {version.task: ref for ref, version in versions.items()}
    if len(by_task) > 1:
        told = " and ".join(f"{ref} serves {task!r}" for task, ref in sorted(by_task.items()))
        raise ConflictError(f"all versions of a route serve one task, but {told}")
    return fixed, versions


def _row(session: Session, name: str) -> RouteRow:
    row = session.get(RouteRow, name)
    if row is None:
        raise UnknownError.among("route", name, session.scalars(select(RouteRow.name)))
    return row


def _counter(name: str) -> str:
    return f"route {name}"


def _outnumber(session: Session, name: str, revision: int) -> None:
    """Have the next route of this name begin above a revision."""
    counter = session.get(Counter, _counter(name), with_for_update=True)
    if counter is None:
        session.add(Counter(name=_counter(name), last=revision))
    else:
        counter.last = max(counter.last, revision)
    session.flush()


def _changed(name: str) -> ConflictError:
    return ConflictError(f"route {name!r} or one of its versions was changed meanwhile; nothing was changed")


def _append(session: Session, name: str, kind: RouteChange, who: str, why: str, spec: RouteSpec | None) -> None:
    session.add(
        RouteEvent(
            route=name,
            seq=next_number(session, f"route:{name}"),
            kind=kind,
            who=who,
            why=why,
            time=now(),
            spec=None if spec is None else spec.model_dump(mode="json"),
        )
    )
    session.flush()


def _event_record(event: RouteEvent) -> RouteEventRecord:
    return RouteEventRecord(
        route=event.route,
        seq=event.seq,
        kind=cast("RouteChange", event.kind),
        who=event.who,
        why=event.why,
        time=event.time,
        spec=None if event.spec is None else RouteSpec.model_validate(event.spec),
    )
