"""What OpenAI's objects and lists have in common: their times, and pages with their parameters. One item more than
asked for tells whether there are more."""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal, Protocol, TypeVar

from fastapi import Query

from graft_client.schemas.openai_files import ListPage
from graft_server.problems import ProblemError

After = Annotated[str | None, Query(description="The last id of the page before.")]
Order = Annotated[Literal["asc", "desc"], Query(description="By the time of creation.")]


class _Identified(Protocol):
    id: str


T = TypeVar("T", bound=_Identified)


def page_of(items: Sequence[T], limit: int) -> ListPage[T]:
    """The page of the first ``limit`` items."""
    shown = list(items[:limit])
    return ListPage(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(items) > limit,
    )


def behind(items: Sequence[T], after: str | None, missing: str) -> Sequence[T]:
    """The items behind the one called ``after``; all where there is none asked for.

    Raises:
        ProblemError: there is no such item; ``missing`` says what there is not, such as "the job has no checkpoint".
    """
    if after is None:
        return items
    ids = [item.id for item in items]
    if after not in ids:
        raise ProblemError("invalid-request", f"`after`: {missing} {after!r}", param="after")
    return items[ids.index(after) + 1 :]


def unix_seconds(time: datetime) -> int:
    """A time in UTC as OpenAI's documents have it."""
    return calendar.timegm(time.utctimetuple())
