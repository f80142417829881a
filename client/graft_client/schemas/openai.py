"""The OpenAI-shaped part of the API: models, chat completions, completions, embeddings.

Field names, defaults and error shapes follow OpenAI's public API reference.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from graft_client.schemas.common import Bias, Schema, Seed, TokenId


class OpenAIRequest(Schema):
    """Unknown parameters are refused, as the real service does.

    What follows ``ignore_eos``, and ``top_k``, are vLLM's additions.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    user: str | None = None
    n: int | None = Field(None, ge=1, le=16)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[TokenId, Bias] | None = Field(None, max_length=1024)
    ignore_eos: bool | None = None
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    stop_token_ids: tuple[TokenId, ...] | None = Field(None, max_length=64)
    min_tokens: int | None = Field(None, ge=0)


class ChatMessage(Schema):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None


class ChatCompletionRequest(OpenAIRequest):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    top_k: int | None = Field(None, ge=0)


class CompletionRequest(OpenAIRequest):
    prompt: str | list[str]
    logprobs: int | None = Field(None, ge=0, le=5)
    top_k: int | None = Field(None, ge=0)
    echo: Literal[False] | None = None


class EmbeddingRequest(Schema):
    """Texts to embed with the base model. Lists of token ids are known, so that they can be refused by their name."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str
    input: str | list[str] | list[TokenId] | list[list[TokenId]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None


class OpenAIUsage(Schema):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class OpenAIErrorBody(Schema):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIError(Schema):
    error: OpenAIErrorBody


class Model(Schema):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "graftwork"
    parent: str | None = Field(None, description="The base model of an adapter.")
    root: str | None = None


class ModelList(Schema):
    object: Literal["list"] = "list"
    data: list[Model]
