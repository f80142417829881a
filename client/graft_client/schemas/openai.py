"""The OpenAI-shaped part of the API: models, and requests for chat completions, completions and embeddings.

Field names, defaults and error shapes follow OpenAI's public API reference.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from graft_client.schemas.common import Bias, Schema, Seed, SomeTokens, TokenCount, TokenId
from graft_client.schemas.openai_files import Metadata
from graft_client.schemas.openai_tools import NamedToolChoice, Tool, ToolCallItem


class OpenAIRequest(Schema):
    """Unknown parameters are refused, as the real service does, and so are those of its parameters that are nothing
    here (``None`` alone is taken for them). ``metadata`` and the parameters before it change no answer.

    What follows ``ignore_eos``, and ``top_k``, are vLLM's additions.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str
    max_tokens: SomeTokens | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    user: str | None = None
    n: int | None = Field(None, ge=1, le=16)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[TokenId, Bias] | None = Field(None, max_length=1024)
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: Metadata | None = None
    ignore_eos: bool | None = None
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    stop_token_ids: tuple[TokenId, ...] | None = Field(None, max_length=64)
    min_tokens: TokenCount | None = None


class TextFormat(Schema):
    """An answer in the model's own words."""

    type: Literal["text"]


class JsonObjectFormat(Schema):
    """An answer that is a JSON object."""

    type: Literal["json_object"]


class NamedJsonSchema(Schema):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool | None = Field(None, description="Accepted; the answer keeps to the schema in any case.")


class JsonSchemaFormat(Schema):
    """An answer that keeps to a JSON schema."""

    type: Literal["json_schema"]
    json_schema: NamedJsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ChatMessage(Schema):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ToolCallItem] | None = None
    tool_call_id: str | None = None


class ChatCompletionRequest(OpenAIRequest):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: SomeTokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    top_k: TokenCount | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, min_length=1, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    function_call: None = None
    functions: None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None


class CompletionRequest(OpenAIRequest):
    """``prompt`` is one text or several, or their tokens, which are the base model's."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    max_tokens: TokenCount | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
    top_k: TokenCount | None = None
    echo: bool | None = None
    best_of: None = None
    suffix: None = None


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


class ModelDeleted(Schema):
    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class ModelList(Schema):
    object: Literal["list"] = "list"
    data: list[Model]
