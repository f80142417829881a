"""API keys and the log of changes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import AwareDatetime, Field

from graft_client.schemas.common import RequestSchema, Schema
from graft_client.schemas.limits import UNSET, Limits, LimitsChange

Scope = Literal["query", "train", "manage", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

NamePattern = Annotated[str, Field(pattern=r"^[a-z0-9*][a-z0-9._*-]{0,63}$")]


class KeyCreate(RequestSchema):
    """A key to make. With ``adapters`` or ``tenant`` it sees nothing else."""

    name: str = Field(
        min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$", description="For people to know it by."
    )
    scopes: list[Scope] = Field(min_length=1, max_length=8)
    adapters: list[NamePattern] = Field([], max_length=100, description="Names of adapters; `*` stands for anything.")
    tenant: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$",
        description="Owns the adapters whose names begin with it and a dot.",
    )
    expires_at: AwareDatetime | None = None
    limits: LimitsChange = Field(LimitsChange(), description="What is left out is as the server is set.")


class KeyInfo(Schema):
    """A key, without its secret."""

    id: str
    name: str
    scopes: list[str]
    adapters: list[str] = []
    tenant: str | None = None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    limits: Limits = UNSET


class NewKey(KeyInfo):
    """A key that was just made."""

    key: str = Field(description="What to send; it can't be shown again.")


class AuditItem(Schema):
    """One change."""

    seq: int
    time: datetime
    actor: str = Field(description="The key that made it, or `server`.")
    action: str = Field(description="What was done to which kind of thing, e.g. `version.create`.")
    target: str
    detail: dict[str, Any] = {}
