"""Routes: a name that leads to adapter versions by weight, what watches over it, and why a request went where."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from graft_client.schemas.common import RequestSchema, Schema
from graft_client.schemas.lifecycle import ChangeRequest


class RouteTarget(RequestSchema):
    """A version that a share of the requests goes to."""

    ref: str = Field(description="`name@N`, an alias (the version it stands for now), or `base`.")
    weight: float = Field(ge=0, le=100, allow_inf_nan=False, description="Percent; all of a route make 100.")


class RouteGuard(RequestSchema):
    """When a canary's weight goes to zero by itself. The canaries are all targets but the heaviest."""

    window_seconds: float = Field(300.0, gt=0, le=86_400, description="What is looked at: the requests of this time.")
    min_requests: int = Field(20, ge=1, le=10_000, description="With fewer in the window, nothing is decided.")
    max_error_rate: float | None = Field(None, ge=0, le=1, description="Of requests that failed for the server's sake.")
    max_p95_seconds: float | None = Field(None, gt=0, description="95th percentile of the time to the whole answer.")
    metric: str | None = Field(
        None, description="A field of the task's answers: a number, or a list, which counts by its length."
    )
    min_metric: float | None = Field(None, allow_inf_nan=False, description="Its mean must not be lower.")
    max_metric: float | None = Field(None, allow_inf_nan=False, description="Its mean must not be higher.")

    @model_validator(mode="after")
    def _bounds_something(self) -> RouteGuard:
        bounds_metric = self.min_metric is not None or self.max_metric is not None
        if bounds_metric != (self.metric is not None):
            raise ValueError("`metric` and a bound for it (`min_metric`, `max_metric`) go together")
        if not bounds_metric and self.max_error_rate is None and self.max_p95_seconds is None:
            raise ValueError("a guard needs a bound: `max_error_rate`, `max_p95_seconds` or `metric`")
        return self


class RouteSpec(RequestSchema):
    """Where the requests of a route go."""

    targets: list[RouteTarget] = Field(min_length=1, max_length=16)
    shadow: str | None = Field(None, description="Gets a copy of each request; its answers are kept, never returned.")
    fallback: list[str] = Field([], max_length=4, description="Who answers, in this order, where a target can't load.")
    guard: RouteGuard | None = None

    @model_validator(mode="after")
    def _weights_make_100(self) -> RouteSpec:
        weights = [target.weight for target in self.targets]
        if abs(sum(weights) - 100) > 1e-6:
            told = " + ".join(f"{weight:g}" for weight in weights)
            raise ValueError(f"the weights are {told} = {sum(weights):g}; they must add up to 100")
        return self


class SetRouteRequest(ChangeRequest):
    """Make a route, or change it."""

    spec: RouteSpec
    revision: int | None = Field(
        None, ge=0, description="The revision that the caller saw (0: no route); another one refuses the change."
    )


class TargetFigures(Schema):
    """What a target did within the guard's window, as this server saw it."""

    ref: str
    requests: int
    error_rate: float
    p95_seconds: float | None = None
    metric: float | None = None


class RouteInfo(Schema):
    """A route as it is in place."""

    name: str
    task: str
    revision: int
    spec: RouteSpec
    updated_at: datetime
    live: list[TargetFigures] = []


RouteChange = Literal["set", "delete", "guard"]


class RouteEvent(Schema):
    """One entry of a route's history."""

    route: str
    seq: int
    kind: RouteChange = Field(description="`guard` is a canary that lost its weight by itself.")
    who: str
    why: str = ""
    time: datetime
    spec: RouteSpec | None = None


class ExplainRequest(RequestSchema):
    """A request whose way is wanted, without an answer."""

    text: str
    adapter: str | None = Field(None, description="As in a prediction; without it and without `task`: `auto`.")
    task: str | None = None
    key: str | None = Field(None, max_length=256)


class Explanation(Schema):
    """How a request would be routed, step by step."""

    adapter: str = Field(description="`name@N`, or `base`.")
    task: str
    steps: list[str]
    fallback: list[str] = []
    shadow: str | None = None


class ShadowRecord(Schema):
    """A request that was served twice: what was returned, and what the shadow would have answered."""

    time: datetime
    adapter: str
    shadow: str
    request: dict[str, Any] | None = Field(None, description="The task's request, where there is one.")
    text: str
    shadow_text: str | None = None
    seconds: float
    shadow_seconds: float | None = None
    error: str | None = Field(None, description="Why the shadow has no answer.")
