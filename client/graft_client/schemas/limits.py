"""How much a key may ask, and an adapter may be asked."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from graft_client.schemas.common import RequestSchema, Schema

#: 0 is no limit at all; ``None`` is what the server's settings say.
Limit = Annotated[int | None, Field(ge=0, le=10**12)]


class Limits(Schema):
    """Requests and tokens in a minute, tokens in a day. 0 is without a limit, null what the server's settings say."""

    model_config = ConfigDict(frozen=True)

    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    tokens_per_day: Limit = None

    def or_else(self, defaults: Limits) -> Limits:
        """These limits, with ``defaults`` where they say nothing."""
        return Limits(**{**defaults.model_dump(), **self.model_dump(exclude_none=True)})


#: Of those who have none of their own.
UNSET = Limits()


class LimitsChange(RequestSchema):
    """New limits; those that are left out stay as they are."""

    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    tokens_per_day: Limit = None

    def applied(self, before: Limits) -> Limits:
        """``before`` with this change."""
        return before.model_copy(update=self.model_dump(exclude_unset=True))
