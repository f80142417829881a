"""What several resources share: the strict base model, problem documents and token usage."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Schema(BaseModel):
    """A document of the API. Unknown fields in a *request* are refused (see ``RequestSchema``)."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class RequestSchema(Schema):
    """A document that a caller sends."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class FieldError(Schema):
    """One thing that is wrong, and where."""

    place: str = Field(description="`file:line:field`, or the path of a field in the request body.")
    message: str


class Problem(Schema):
    """An error, as an RFC 9457 problem document."""

    type: str = Field("about:blank", description="`urn:graftwork:problem:CODE`.")
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable and machine-readable, e.g. `unknown-adapter`.")
    nearest: str | None = Field(None, description="The nearest name that exists, where a name was unknown.")
    errors: list[FieldError] = []
    request_id: str | None = None


class Usage(Schema):
    """Tokens of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Timings(Schema):
    """Seconds spent on one request."""

    queued: float = 0.0
    first_token: float | None = None
    total: float = 0.0


class MetricValue(Schema):
    """One measured figure."""

    value: float
    higher_is_better: bool = True
    signature: str | None = None


class MetricReport(Schema):
    """The metrics of one run over held-out rows."""

    primary: str
    metrics: dict[str, MetricValue]
    rows: int

    @property
    def score(self) -> float:
        return self.metrics[self.primary].value


JsonObject = dict[str, Any]

#: More than any text has tokens, and what tensors can hold.
_MOST = 2**31 - 1

#: A token's number in the base model's vocabulary.
TokenId = Annotated[int, Field(ge=0, le=_MOST)]
#: How many tokens.
TokenCount = Annotated[int, Field(ge=0, le=_MOST)]
SomeTokens = Annotated[int, Field(ge=1, le=_MOST)]
#: What is added to a token's logit; at either end it decides alone.
Bias = Annotated[float, Field(ge=-100, le=100)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
