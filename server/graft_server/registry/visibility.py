"""What a caller may see. Kept beside the running request, and applied to every query of every session, so that no
query has to remember it: what may not be seen is not there, in lists, by name, and for the nearest name of an error.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from sqlalchemy import ColumnElement, or_
from sqlalchemy.orm import with_loader_criteria
from sqlalchemy.orm.interfaces import ORMOption

from graft_server.registry.models import (
    Adapter,
    Alias,
    AliasEvent,
    Dataset,
    Document,
    Job,
    RouteEvent,
    RouteRow,
    Version,
)

#: As an execution option of a query: it finds all there is. For what a visible row names, as the targets of a route.
EVERYTHING = "graft_everything"


@dataclass(frozen=True, slots=True)
class Visibility:
    """Adapters and routes whose names match one of ``patterns`` (``*`` stands for anything), and the datasets
    and documents of ``owner``."""

    patterns: tuple[str, ...]
    owner: str

    @property
    def described(self) -> str:
        return f"its names are {' or '.join(self.patterns)}"

    def allows(self, name: str) -> bool:
        """Whether an adapter of this name may be seen."""
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def matches(self, column: Any) -> ColumnElement[bool]:
        """The same as SQL. Names are lower-case, so that LIKE means the same in every database."""
        return or_(*(column.like(_like(pattern), escape="/") for pattern in self.patterns))


#: What the running request may see; ``None`` is everything.
visible: ContextVar[Visibility | None] = ContextVar("graft_visible", default=None)
#: Who makes the changes of the running request.
actor: ContextVar[str] = ContextVar("graft_actor", default="server")


def restrictions() -> list[ORMOption]:
    """What every query is given for the running request."""
    view = visible.get()
    if view is None:
        return []
    return [
        with_loader_criteria(Adapter, view.matches(Adapter.name), include_aliases=True),
        with_loader_criteria(Version, view.matches(Version.adapter), include_aliases=True),
        with_loader_criteria(Alias, view.matches(Alias.adapter), include_aliases=True),
        with_loader_criteria(AliasEvent, view.matches(AliasEvent.adapter), include_aliases=True),
        with_loader_criteria(RouteRow, view.matches(RouteRow.name), include_aliases=True),
        with_loader_criteria(RouteEvent, view.matches(RouteEvent.route), include_aliases=True),
        with_loader_criteria(Job, view.matches(Job.adapter), include_aliases=True),
        with_loader_criteria(Dataset, Dataset.owner == view.owner, include_aliases=True),
        with_loader_criteria(Document, Document.owner == view.owner, include_aliases=True),
    ]


def _like(pattern: str) -> str:
    for special in "/%_":
        pattern = pattern.replace(special, f"/{special}")
    return pattern.replace("*", "%")
