"""The OpenAI-shaped ``/v1/responses``: requests for text, and what is answered and kept.

Field names, defaults and shapes follow OpenAI's public API reference.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from graft_client.schemas.common import Schema, SomeTokens
from graft_client.schemas.openai import JsonObjectFormat, NamedJsonSchema, TextFormat
from graft_client.schemas.openai_files import Metadata


class NamedSchemaFormat(NamedJsonSchema):
    """An answer that keeps to a JSON schema; here name and schema stand beside the type."""

    type: Literal["json_schema"]


TextFormats = Annotated[TextFormat | JsonObjectFormat | NamedSchemaFormat, Field(discriminator="type")]


class TextConfig(Schema):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    format: TextFormats = TextFormat(type="text")
    verbosity: None = None


class InputItem(Schema):
    """A message; of an answer's items those that are messages."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[dict[str, Any]] | None = None


class ResponseRequest(Schema):
    """Unknown parameters are refused, as the real service does, and so are those of its parameters that are nothing
    here (``None`` alone is taken for them). ``store`` keeps the answer for a while."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str
    input: str | list[InputItem] = Field(min_length=1)
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: SomeTokens | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    text: TextConfig | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    store: bool | None = True
    metadata: Metadata | None = None
    user: str | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    conversation: None = None
    max_tool_calls: None = None
    prompt: None = None
    reasoning: None = None


class OutputText(Schema):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[dict[str, Any]] = []
    logprobs: list[dict[str, Any]] = []


class OutputMessage(Schema):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class InputText(Schema):
    type: Literal["input_text"] = "input_text"
    text: str


class KeptInput(Schema):
    """A message that a kept response was asked with."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    status: Literal["completed"] = "completed"
    content: list[InputText | OutputText]


class InputTokensDetails(Schema):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(Schema):
    reasoning_tokens: int = 0


class ResponseUsage(Schema):
    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class ResponseError(Schema):
    code: str
    message: str


class IncompleteDetails(Schema):
    reason: Literal["max_output_tokens"]


class ResponseObject(Schema):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: Metadata = {}
    model: str
    output: list[OutputMessage] = []
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    store: bool = True
    temperature: float | None = None
    text: dict[str, Any] = {}
    tool_choice: str = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: int = 0
    top_p: float | None = None
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None


class ResponseDeleted(Schema):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
