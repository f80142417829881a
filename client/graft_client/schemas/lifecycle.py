"""Aliases and their history, promotions behind a gate, and what garbage collection would delete."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from graft_client.schemas.common import Problem, RequestSchema, Schema

AliasChange = Literal["promote", "rollback", "remove", "refused"]


class GateReport(Schema):
    """What a gate measured: the main metric of the new version and of the one in place, on the same rows."""

    dataset: str
    rows: int
    metric: str
    higher_is_better: bool = True
    against: str = Field(description="`name@N`, or `base` where no version was in place.")
    score: float
    score_in_place: float
    min_delta: float

    @property
    def delta(self) -> float:
        """By how much the new version is better; negative where it is worse."""
        change = self.score - self.score_in_place
        return change if self.higher_is_better else -change

    @property
    def passed(self) -> bool:
        return self.delta >= self.min_delta


class AliasEvent(Schema):
    """One entry of an adapter's history."""

    adapter: str
    seq: int
    alias: str
    kind: AliasChange = Field(description="`refused` is a promote that its gate kept back.")
    version: int | None = Field(None, description="What the alias stands for from then on, or was to stand for.")
    previous: int | None = Field(None, description="What it stood for before.")
    who: str
    why: str = ""
    time: datetime
    gate: GateReport | None = None


class ChangeRequest(RequestSchema):
    """A change that is kept with its reason."""

    why: str = Field("", max_length=1000)


class PromoteRequest(ChangeRequest):
    """Let an alias stand for a version."""

    version: int = Field(ge=1)
    in_place: int | None = Field(
        None, ge=0, description="The version that the caller saw in place (0: none); another one refuses it."
    )


class GateRequest(PromoteRequest):
    """Let an alias stand for a version if it is good enough on a dataset."""

    dataset: str
    min_delta: float = Field(0.0, allow_inf_nan=False, description="By how much it must be better at least.")
    limit: int | None = Field(None, ge=1, description="Only this many rows.")


class GateEvent(Schema):
    """One NDJSON line of a promotion behind a gate; the last one has the event or a problem."""

    done: int = 0
    total: int = 0
    event: AliasEvent | None = None
    problem: Problem | None = None


class GcRequest(RequestSchema):
    """Which versions may go."""

    keep: int = Field(3, ge=1, description="How many of the newest versions of each adapter stay.")
    older_than_days: float = Field(0.0, ge=0, le=36_500, description="Younger versions stay.")
    adapter: str | None = Field(None, description="Only versions of this adapter.")
    dry_run: bool = Field(True, description="Only say what would be deleted.")


class GcVersion(Schema):
    """A version that is deleted, or why it stays."""

    ref: str
    size_bytes: int
    created_at: datetime
    kept_because: str | None = None


class GcReport(Schema):
    """What was deleted, or would be."""

    dry_run: bool
    deleted: list[GcVersion]
    kept: list[GcVersion] = Field(description="Versions that are old enough to go, and stay for the reason given.")
    freed_bytes: int = Field(description="Of files that no other version shares.")
    orphans: int = Field(description="Folders of killed processes that nothing names.")
