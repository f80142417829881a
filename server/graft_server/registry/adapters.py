"""Adapters and their versions: rows in, records out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from sqlalchemy import String, cast, func, or_, select
from sqlalchemy.orm import Session, contains_eager, joinedload, selectinload

from graft_client.schemas.adapters import EvaluationSummary
from graft_server.registry import limits
from graft_server.registry.artefacts import ArtefactStore, Staged
from graft_server.registry.database import next_number
from graft_server.registry.errors import ConflictError, InvalidNameError, UnknownError
from graft_server.registry.models import Adapter, Alias, Artefact, RouteRow, Version, now
from graft_server.registry.records import AdapterRecord, Lineage, VersionRecord
from graft_server.registry.visibility import EVERYTHING, visible

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_RESERVED = frozenset({"base", "auto"})
#: Aliases begin with a letter, so that none looks like a version's number.
ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,63}")
#: What stands for the version that was published last, wherever an alias can stand.
LATEST = "latest"
_LINEAGE_FIELDS = tuple(field.name for field in fields(Lineage))
#: With what a record needs of another table, in one query.
_WHOLE_VERSIONS = select(Version).options(joinedload(Version.artefact))


def check_name(name: str) -> None:
    """Raises:
    InvalidNameError: no adapter can be called so.
    """
    if name in _RESERVED:
        raise InvalidNameError(f"{name!r} can't name an adapter: it means something else in a request")
    if not _NAME.fullmatch(name):
        raise InvalidNameError(
            f"{name!r} can't name an adapter: use 1 to 64 lower-case letters, digits, hyphens, underscores and "
            "dots, starting with a letter or a digit"
        )
    view = visible.get()
    if view is not None and not view.allows(name):
        # Said of every such name, there or not.
        raise InvalidNameError(f"{name!r} is no name that your key may use: {view.described}")


def check_free(session: Session, name: str, task: str) -> None:
    """Whether an adapter of this task can have this name.

    Raises:
        ConflictError: the adapter exists and belongs to another task, or a route has the name.
    """
    if session.get(RouteRow, name) is not None:
        raise ConflictError(f"{name!r} is a route; an adapter needs a name of its own")
    adapter = session.get(Adapter, name)
    if adapter is not None and adapter.task != task:
        raise ConflictError(f"adapter {name!r} belongs to the task {adapter.task!r}, not to {task!r}")


def add_version(session: Session, name: str, staged: Staged, lineage: Lineage) -> Version:
    """Record the next version of an adapter, and the adapter with its first."""
    adapter = session.get(Adapter, name)
    if adapter is None:
        adapter = Adapter(name=name, task=lineage.task, created_at=now())
        session.add(adapter)
    artefact = session.get(Artefact, staged.digest)
    if artefact is None:
        files = [[file.name, file.size, file.sha256] for file in staged.files]
        artefact = Artefact(digest=staged.digest, size_bytes=staged.size_bytes, files=files, created_at=now())
        session.add(artefact)
    version = Version(
        engine_id=next_number(session, "engine"),
        # Counted apart from the adapter's row, so that a deleted adapter's numbers do not come back with its name.
        number=next_number(session, f"version:{name}"),
        owner=adapter,
        artefact=artefact,
        created_at=now(),
        **_lineage_columns(lineage),
    )
    session.add(version)
    session.flush()
    return version


def find_adapter(session: Session, name: str) -> Adapter:
    """Raises:
    UnknownError: there is none.
    """
    adapter = session.get(Adapter, name)
    if adapter is None:
        raise UnknownError.among("adapter", name, session.scalars(select(Adapter.name)))
    return adapter


def seek_version(session: Session, name: str, which: int | str | None) -> Version | None:
    """A version by number or by alias, or the latest; ``None`` where there is none. Every request asks for one, so
    it is one query."""
    query = _WHOLE_VERSIONS.where(Version.adapter == name)
    if isinstance(which, int):
        query = query.where(Version.number == which)
    elif which not in (None, LATEST):
        query = query.join(Alias, Alias.engine_id == Version.engine_id).where(
            Alias.adapter == name, Alias.name == which
        )
    return session.scalar(query.order_by(Version.number.desc()).limit(1))


def find_version(session: Session, name: str, which: int | str | None) -> Version:
    """A version by number or by alias, or the latest.

    Raises:
        UnknownError: the adapter, the version or the alias does not exist.
    """
    version = seek_version(session, name, which)
    if version is None:
        adapter = find_adapter(session, name)
        near = get_close_matches(str(which), [alias.name for alias in adapter.aliases], n=1)
        raise UnknownError("version", f"{name}@{which}", f"{name}@{near[0] if near else adapter.versions[-1].number}")
    return version


def parse_ref(ref: str) -> tuple[str, int | str | None]:
    """``name``, ``name@3`` or ``name@production`` as a name and what stands behind the ``@``.

    Raises:
        UnknownError: what stands behind ``@`` is neither a version number nor an alias.
    """
    name, at, which = ref.partition("@")
    if not at:
        return name, None
    if which.isascii() and which.isdigit() and len(which) <= 9:
        return name, int(which)
    if not ALIAS.fullmatch(which):
        raise UnknownError("version", ref)
    return name, which


def list_adapters(session: Session, task: str | None) -> list[Adapter]:
    # Versions and artefacts in a query each, however many adapters there are.
    whole = selectinload(Adapter.versions).joinedload(Version.artefact)
    aliases = selectinload(Adapter.aliases).joinedload(Alias.version)
    query = select(Adapter).order_by(Adapter.name).options(whole, aliases)
    if task is not None:
        query = query.where(Adapter.task == task)
    return list(session.scalars(query))


def latest_for_task(session: Session, task: str) -> Version | None:
    """Of those that a training came out with: its checkpoints answer who names them."""
    query = _WHOLE_VERSIONS.where(Version.task == task, Version.step.is_(None))
    return session.scalar(query.order_by(Version.engine_id.desc()).limit(1))


def list_described(session: Session, after: int, file: str) -> list[Version]:
    """Those with a dataset or with a file of this name that are no checkpoints, in the order in which they were
    published."""
    has_file = cast(Artefact.files, String).contains(f'"{file}"')
    query = select(Version).join(Version.artefact).options(contains_eager(Version.artefact))
    query = query.where(Version.engine_id > after, Version.step.is_(None), or_(Version.dataset.is_not(None), has_file))
    return list(session.scalars(query.order_by(Version.engine_id)))


def list_pinned(session: Session) -> list[Version]:
    """In the order in which they were published."""
    query = select(Version).where(Version.pinned).order_by(Version.engine_id).options(joinedload(Version.artefact))
    return list(session.scalars(query))


def remove_version(session: Session, version: Version) -> list[str]:
    """Delete a version, and its adapter with the last one. Returns digests that nothing refers to any more.

    Raises:
        ConflictError: an alias stands for it.
    """
    adapter = version.owner
    _refuse_named(session, [version])
    adapter.versions.remove(version)
    if not adapter.versions:
        session.delete(adapter)
    return _drop_unreferenced(session, [version.digest])


def remove_adapter(session: Session, adapter: Adapter) -> list[str]:
    """Delete an adapter with its versions. Returns digests that nothing refers to any more.

    Raises:
        ConflictError: an alias stands for one of them.
    """
    _refuse_named(session, adapter.versions)
    digests = [version.digest for version in adapter.versions]
    session.delete(adapter)
    return _drop_unreferenced(session, digests)


def _refuse_named(session: Session, versions: Sequence[Version]) -> None:
    by_id = {version.engine_id: version for version in versions}
    alias = session.scalar(select(Alias).where(Alias.engine_id.in_(by_id)).order_by(Alias.name).limit(1))
    if alias is not None:
        ref = f"{alias.adapter}@{by_id[alias.engine_id].number}"
        raise ConflictError(
            f"{ref} is what {alias.adapter}@{alias.name} stands for: promote another version, or remove the alias"
        )


def _drop_unreferenced(session: Session, digests: list[str]) -> list[str]:
    session.flush()
    free = []
    for digest in dict.fromkeys(digests):
        # Those that the caller may not see count too.
        others = select(func.count()).where(Version.digest == digest).execution_options(**{EVERYTHING: True})
        if not session.scalar(others):
            session.delete(session.get_one(Artefact, digest))
            free.append(digest)
    session.flush()
    return free


def version_record(version: Version, store: ArtefactStore) -> VersionRecord:
    columns: dict[str, Any] = {name: getattr(version, name) for name in _LINEAGE_FIELDS}
    if version.evaluation is not None:
        columns["evaluation"] = EvaluationSummary.model_validate(version.evaluation)
    return VersionRecord(
        adapter=version.adapter,
        version=version.number,
        engine_id=version.engine_id,
        digest=version.digest,
        path=store.artefact_path(version.digest),
        size_bytes=version.artefact.size_bytes,
        created_at=version.created_at,
        lineage=Lineage(**columns),
        files=tuple(name for name, _, _ in version.artefact.files),
        pinned=version.pinned,
    )


def adapter_record(adapter: Adapter, store: ArtefactStore) -> AdapterRecord:
    return AdapterRecord(
        name=adapter.name,
        task=adapter.task,
        created_at=adapter.created_at,
        versions=tuple(version_record(version, store) for version in adapter.versions),
        aliases={alias.name: alias.version.number for alias in adapter.aliases},
        limits=limits.of_row(adapter.limits),
    )


def _lineage_columns(lineage: Lineage) -> dict[str, Any]:
    columns = {name: getattr(lineage, name) for name in _LINEAGE_FIELDS}
    if lineage.evaluation is not None:
        columns["evaluation"] = lineage.evaluation.model_dump(mode="json")
    return columns
