"""Predictions: one, streamed, in bulk; and evaluations."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from graft_client.schemas.adapters import EvaluationSummary
from graft_client.schemas.common import (
    Bias,
    Problem,
    RequestSchema,
    Schema,
    Seed,
    SomeTokens,
    Timings,
    TokenCount,
    TokenId,
    Usage,
)

#: Seconds that a request may give itself at most.
MAX_TIMEOUT = 3600.0


class SamplingOverrides(RequestSchema):
    """How to draw tokens, where the caller wants it otherwise than the task."""

    max_tokens: SomeTokens | None = None
    temperature: float | None = Field(None, ge=0, le=5)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: TokenCount | None = None
    seed: Seed | None = None
    stop: list[str] | None = Field(None, max_length=16)
    ignore_eos: bool | None = Field(None, description="Generate on where the model would end its answer.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[TokenId, Bias] | None = Field(None, max_length=1024)
    stop_token_ids: tuple[TokenId, ...] | None = Field(None, max_length=64)
    min_tokens: TokenCount | None = None

    @model_validator(mode="after")
    def _some_length_is_left(self) -> SamplingOverrides:
        if self.max_tokens is not None and (self.min_tokens or 0) > self.max_tokens:
            raise ValueError("`min_tokens` is more than `max_tokens`")
        return self


class PredictRequest(RequestSchema):
    """One request: for an adapter (``name``, ``name@N``, ``name@alias``), a route, a task, ``auto``, or ``base`` with a
    task."""

    adapter: str | None = None
    task: str | None = None
    input: dict[str, Any] | None = Field(None, description="A request of the task, by its schema.")
    text: str | None = Field(None, description="Plain text, which the task turns into a request.")
    key: str | None = Field(
        None, max_length=256, description="Requests with the same key go to the same target of a route."
    )
    sampling: SamplingOverrides = SamplingOverrides()
    stream: bool = False
    timeout: float | None = Field(
        None, gt=0, le=MAX_TIMEOUT, description="Seconds until the whole answer at most, waiting included."
    )
    priority: Literal["interactive", "background"] = Field(
        "interactive", description="`background` takes the places that interactive requests leave."
    )

    @model_validator(mode="after")
    def _one_target_one_input(self) -> PredictRequest:
        if self.adapter is None and self.task is None:
            raise ValueError("name an adapter or a task")
        if (self.input is None) == (self.text is None):
            raise ValueError("give either `input` or `text`")
        return self


class AutoChoice(Schema):
    """How `auto` decided."""

    adapter: str = Field(description="`name@N`, or `base` where nothing fitted well enough.")
    confidence: float = Field(description="Of the best adapter, from 0 to 1.")
    runner_up: str | None = None
    runner_up_confidence: float | None = None


class PredictResponse(Schema):
    """An answer, and which adapter version gave it."""

    id: str
    adapter: str = Field(description="`name@N`, or `base`.")
    task: str
    output: dict[str, Any] = Field(description="The task's typed response.")
    text: str = Field(description="The response as plain text.")
    finish_reason: str = "stop"
    usage: Usage
    timings: Timings
    routing: AutoChoice | None = Field(None, description="How the adapter was chosen, where the text decided.")


class PredictEvent(Schema):
    """One server-sent event of a streamed prediction."""

    event: Literal["delta", "result", "error"]
    delta: str | None = None
    result: PredictResponse | None = None
    problem: Problem | None = None


class BulkRequest(RequestSchema):
    """Many requests, for one adapter or for several. Answers come as NDJSON in the order they finish."""

    items: list[PredictRequest] = Field(min_length=1, max_length=10_000)


class BulkLine(Schema):
    """One line of a bulk answer: the item's index and either its result or its problem."""

    index: int
    result: PredictResponse | None = None
    problem: Problem | None = None


class EvaluationRequest(RequestSchema):
    """Measure an adapter (or the base model, with ``task``) on a dataset."""

    adapter: str
    dataset: str
    task: str | None = None
    against: str | None = Field(None, description="`base`, or another adapter, on the same rows.")
    limit: int | None = Field(None, ge=1, description="Only this many rows.")


class EvaluationEvent(Schema):
    """One NDJSON line of a running evaluation; the last one has the summary or a problem."""

    done: int = 0
    total: int = 0
    adapter: str | None = None
    against: str | None = None
    summary: EvaluationSummary | None = None
    problem: Problem | None = None
