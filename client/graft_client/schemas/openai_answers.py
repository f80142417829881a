"""What ``/v1/chat/completions`` and ``/v1/completions`` answer when nothing is streamed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from graft_client.schemas.common import Schema
from graft_client.schemas.openai import OpenAIUsage
from graft_client.schemas.openai_tools import ToolCallItem


class AnswerMessage(Schema):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    tool_calls: list[ToolCallItem] | None = None

    @model_serializer(mode="wrap")
    def _without_calls(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As OpenAI's service has it, an answer that calls nothing has no ``tool_calls``."""
        document: dict[str, Any] = serialise(self)
        if self.tool_calls is None:
            del document["tool_calls"]
        return document


class ChatChoice(Schema):
    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None = None
    finish_reason: str


class ChatCompletion(Schema):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: OpenAIUsage
    system_fingerprint: str | None = None


class CompletionChoice(Schema):
    index: int
    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: str


class Completion(Schema):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: OpenAIUsage
    system_fingerprint: str | None = None


class EmbeddingItem(Schema):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Schema):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Schema):
    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage
