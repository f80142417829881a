"""Documents that callers have the server keep between requests: uploaded files, batches, responses, and what a
fine-tuning job was asked for. Each is a JSON object under an id of its kind; only its owner knows what is in it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice, takewhile
from typing import Any, Literal

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from graft_server.registry.database import Database, next_number
from graft_server.registry.errors import UnknownError
from graft_server.registry.models import Document, now
from graft_server.registry.visibility import visible

DocumentKind = Literal["file", "batch", "response", "fine-tuning"]

_PREFIXES: Mapping[DocumentKind, str] = {
    "file": "file-",
    "batch": "batch_",
    "response": "resp_",
    "fine-tuning": "ftjob-",
}


#: Rows that are read together where it is not known how many are needed.
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """One kept document."""

    id: str
    kind: str
    created_at: datetime
    data: dict[str, Any]
    owner: str | None = None
    """The tenant or the limited key that it belongs to; ``None`` is whoever sees everything."""


class Documents:
    """The kept documents of one database. Every method is one transaction. Blocking."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @staticmethod
    def new_id(kind: DocumentKind) -> str:
        """An id that nothing has yet."""
        return f"{_PREFIXES[kind]}{secrets.token_hex(12)}"

    def add(
        self,
        kind: DocumentKind,
        data: dict[str, Any],
        *,
        identity: str | None = None,
        like: DocumentRecord | None = None,
    ) -> DocumentRecord:
        """Keep a document, under a new id unless it brings its own. It belongs to whoever has it kept, or to whom
        another one, ``like``, belongs."""
        with self._database.write() as session:
            return record_of(insert(session, kind, data, identity=identity, like=like))

    def get(self, kind: DocumentKind, identity: str) -> DocumentRecord:
        """Raises:
        UnknownError: there is none of this kind.
        """
        with self._database.read() as session:
            return record_of(_find(session, kind, identity))

    def by_ids(self, kind: DocumentKind, identities: list[str]) -> dict[str, DocumentRecord]:
        """Those of the ids that exist."""
        with self._database.read() as session:
            rows = session.scalars(select(Document).where(Document.kind == kind, Document.id.in_(identities)))
            return {row.id: record_of(row) for row in rows}

    def list(
        self,
        kind: DocumentKind,
        *,
        after: str | None = None,
        limit: int | None = None,
        oldest_first: bool = False,
        keep: Callable[[dict[str, Any]], bool] = lambda data: True,
    ) -> list[DocumentRecord]:
        """Those behind ``after`` in the order asked for, the newest first unless told otherwise; of these, the first
        ``limit`` that are to be kept.

        Raises:
            UnknownError: there is no document ``after``.
        """
        with self._database.read() as session:
            query = select(Document).where(Document.kind == kind).execution_options(yield_per=_AT_ONCE)
            query = query.order_by(Document.number if oldest_first else Document.number.desc())
            if after is not None:
                place = _find(session, kind, after).number
                query = query.where(Document.number > place if oldest_first else Document.number < place)
            return list(islice((record_of(row) for row in session.scalars(query) if keep(row.data)), limit))

    def update(self, kind: DocumentKind, identity: str, **changes: Any) -> DocumentRecord:
        """Replace fields of a document.

        Raises:
            UnknownError: there is none of this kind.
        """
        return self.edit(kind, identity, lambda data: changes)

    def edit(
        self, kind: DocumentKind, identity: str, change: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> DocumentRecord:
        """Replace the fields that ``change`` gives for the document as it is; nobody else changes it meanwhile.

        Raises:
            UnknownError: there is none of this kind.
        """
        with self._database.write() as session:
            row = _find(session, kind, identity, lock=True)
            row.data = {**row.data, **change(row.data)}
            return record_of(row)

    def remove(self, kind: DocumentKind, identity: str) -> None:
        """Raises:
        UnknownError: there is none of this kind.
        """
        with self._database.write() as session:
            session.delete(_find(session, kind, identity))

    def remove_old(self, kind: DocumentKind, age: timedelta, *, limit: int) -> int:
        """Remove those that were made longer than ``age`` ago, the oldest first and at most ``limit`` of them; how many
        there were."""
        with self._database.write() as session:
            oldest = select(Document.id, Document.created_at).where(Document.kind == kind)
            rows = session.execute(oldest.order_by(Document.number).limit(limit)).all()
            # The first that is young ends the look: what is behind it is younger, whatever the table holds.
            old = [row.id for row in takewhile(lambda row: row.created_at < now() - age, rows)]
            session.execute(delete(Document).where(Document.id.in_(old)))
            return len(old)


def job_document(job: str) -> str:
    """The id of the document that came with a training job."""
    return _PREFIXES["fine-tuning"] + job


def insert(
    session: Session,
    kind: DocumentKind,
    data: dict[str, Any],
    *,
    identity: str | None = None,
    like: DocumentRecord | None = None,
) -> Document:
    """A new document of whoever the transaction is for, or of whom another one belongs to."""
    view = visible.get()
    row = Document(
        id=identity or Documents.new_id(kind),
        kind=kind,
        number=next_number(session, "document"),
        created_at=now(),
        owner=like.owner if like is not None else view.owner if view is not None else None,
        data=data,
    )
    session.add(row)
    session.flush()
    return row


def _find(session: Session, kind: DocumentKind, identity: str, *, lock: bool = False) -> Document:
    row = session.get(Document, identity, with_for_update=lock)
    if row is None or row.kind != kind:
        raise UnknownError("job" if kind == "fine-tuning" else kind, identity)
    return row


def file_ids() -> Select[str]:
    """The ids of kept files."""
    return select(Document.id).where(Document.kind == "file")


def record_of(row: Document) -> DocumentRecord:
    """A row as it is told outside of its transaction."""
    return DocumentRecord(row.id, row.kind, row.created_at, row.data, row.owner)
