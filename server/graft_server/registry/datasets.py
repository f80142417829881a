"""Datasets: rows in, records out. A dataset's id is derived from its task and its files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from graft_client.schemas.jobs import JobState
from graft_server.registry.artefacts import ArtefactStore
from graft_server.registry.database import next_number
from graft_server.registry.errors import ConflictError, UnknownError
from graft_server.registry.models import Dataset, Job, now
from graft_server.registry.records import DatasetRecord
from graft_server.registry.stored import StoredFile
from graft_server.registry.visibility import EVERYTHING, visible

_UNFINISHED = tuple(state.value for state in JobState if not state.finished)


def dataset_id(task: str, files: Sequence[StoredFile]) -> str:
    """The id of these files, in this order, read as examples of ``task``."""
    content = "".join(f"{file.name}\n{file.sha256}\n" for file in files)
    return hashlib.sha256(f"{task}\n{content}".encode()).hexdigest()[:24]


def identify(task: str, files: Sequence[StoredFile]) -> str:
    """The id of these files as a dataset of the caller: with the owner in it, it says nothing of the same files in
    other hands."""
    view = visible.get()
    return dataset_id(task if view is None else f"{view.owner}\n{task}", files)


def in_order(files: Sequence[StoredFile], names: Sequence[str]) -> list[StoredFile]:
    """Files in the order of ``names``; those it does not name follow. Some formats depend on the order."""
    places = {name: place for place, name in enumerate(names)}
    return sorted(files, key=lambda file: (places.get(file.name, len(places)), file.name))


def add(
    session: Session,
    files: Sequence[StoredFile],
    *,
    task: str,
    format: str,  # noqa: A002
    rows: int,
    bad_rows: int,
) -> Dataset:
    """Record a dataset, or find it where the same files are there for the same task."""
    view = visible.get()
    owner = view.owner if view is not None else None
    identity = identify(task, files)
    dataset = session.get(Dataset, identity)
    if dataset is None:
        dataset = Dataset(
            id=identity,
            number=next_number(session, "dataset"),
            task=task,
            format=format,
            rows=rows,
            bad_rows=bad_rows,
            files=[[file.name, file.size, file.sha256] for file in files],
            created_at=now(),
            owner=owner,
        )
        session.add(dataset)
        session.flush()
    return dataset


def find(session: Session, identity: str) -> Dataset:
    """Raises:
    UnknownError: there is none.
    """
    dataset = session.get(Dataset, identity)
    if dataset is None:
        raise UnknownError.among("dataset", identity, session.scalars(select(Dataset.id)))
    return dataset


def list_all(session: Session, task: str | None) -> list[Dataset]:
    """The newest first."""
    query = select(Dataset).order_by(Dataset.number.desc())
    if task is not None:
        query = query.where(Dataset.task == task)
    return list(session.scalars(query))


def remove(session: Session, identity: str) -> None:
    """Raises:
    UnknownError: there is none.
    ConflictError: a job that is not finished uses it.
    """
    dataset = find(session, identity)
    uses = or_(Job.dataset == identity, Job.options["validation_dataset"].as_string() == identity)
    users = select(Job.id).where(uses, Job.state.in_(_UNFINISHED)).limit(1)
    # Also by one that the caller may not see, and is not told of.
    if session.scalar(users.execution_options(**{EVERYTHING: True})) is not None:
        seen = session.scalar(users)
        who = f"job {seen!r}, which is not finished" if seen else "a job that is not finished"
        raise ConflictError(f"dataset {identity!r} is in use by {who}")
    session.delete(dataset)


def record(dataset: Dataset, store: ArtefactStore) -> DatasetRecord:
    return DatasetRecord(
        id=dataset.id,
        task=dataset.task,
        format=dataset.format,
        rows=dataset.rows,
        bad_rows=dataset.bad_rows,
        files=tuple((name, size, sha256) for name, size, sha256 in dataset.files),
        path=store.datasets / dataset.id,
        created_at=dataset.created_at,
    )
