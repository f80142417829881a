"""Pages of OpenAI's lists: their parameters, and one item more than asked for tells whether there are more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, TypeVar

from fastapi import Query

from graft_client.schemas.openai_files import ListPage

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
