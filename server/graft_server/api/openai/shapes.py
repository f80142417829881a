"""Between OpenAI's documents and ours: sampling, messages, usage and log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from graft_client.schemas.common import Usage
from graft_client.schemas.openai import (
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    OpenAIUsage,
    TextFormat,
)
from graft_client.schemas.openai_tools import ToolCallItem
from graft_plugins.task import Constraint, JsonSchema, Message, Prompt, ToolCall
from graft_server.engine.base import EchoedPrompt, TokenLogprob
from graft_server.problems import ProblemError

_ROLES: dict[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}

#: Answers of one request at most: all of them enter the queue at once.
_MOST_CHOICES = 512


def sampling_of(body: ChatCompletionRequest | CompletionRequest) -> dict[str, Any]:
    """The fields of ``Sampling`` that the caller set.

    Raises:
        ProblemError: the parameters contradict each other.
    """
    given: dict[str, Any] = {
        "max_tokens": body.max_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "seed": body.seed,
        "ignore_eos": body.ignore_eos,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": body.logit_bias,
        "stop_token_ids": body.stop_token_ids,
        "min_tokens": body.min_tokens,
        "stop": (body.stop,) if isinstance(body.stop, str) else tuple(body.stop) if body.stop else None,
    }
    if isinstance(body, ChatCompletionRequest):
        if body.max_completion_tokens is not None:
            given["max_tokens"] = body.max_completion_tokens
        if body.top_logprobs is not None and not body.logprobs:
            raise ProblemError("invalid-request", "`top_logprobs` needs `logprobs` to be true", param="top_logprobs")
        if body.logprobs:
            given["logprobs"] = body.top_logprobs or 0
    else:
        given["logprobs"] = body.logprobs
    if len(given["stop"] or ()) > 4:
        raise ProblemError("invalid-request", "`stop` takes at most 4 strings", param="stop")
    if given["max_tokens"] is not None and (given["min_tokens"] or 0) > given["max_tokens"]:
        raise ProblemError("invalid-request", "`min_tokens` is more than `max_tokens`", param="min_tokens")
    return {key: value for key, value in given.items() if value is not None}


def wants_usage(body: ChatCompletionRequest | CompletionRequest) -> bool:
    """Whether a stream ends with a chunk of usage.

    Raises:
        ProblemError: ``stream_options`` without ``stream``.
    """
    if body.stream_options is not None and not body.stream:
        raise ProblemError("invalid-request", "`stream_options` needs `stream` to be true", param="stream_options")
    return bool((body.stream_options or {}).get("include_usage"))


def constraint_of(wanted: TextFormat | JsonObjectFormat | JsonSchemaFormat | None) -> Constraint | None:
    """What a format makes the answer match."""
    match wanted:
        case JsonObjectFormat():
            return JsonSchema(json_schema={"type": "object"})
        case JsonSchemaFormat():
            return JsonSchema(json_schema=wanted.json_schema.schema_)
        case _:
            return None


def prompts_of(body: CompletionRequest) -> list[Prompt]:
    """
    Raises:
        ProblemError: there is none, one is an empty list of tokens, or they ask for too many answers.
    """
    given = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    tokens = tuple(each for each in given if isinstance(each, int))
    if tokens:
        return [Prompt(tokens=tokens)]
    prompts = [
        Prompt(text=each) if isinstance(each, str) else Prompt(tokens=tuple(each))
        for each in given
        if not isinstance(each, int)
    ]
    if not prompts or any(prompt.text is None and not prompt.tokens for prompt in prompts):
        raise ProblemError("invalid-request", "`prompt` holds no text", param="prompt")
    if len(prompts) * (body.n or 1) > _MOST_CHOICES:
        detail = f"`prompt` and `n` ask for {len(prompts) * (body.n or 1)} answers; {_MOST_CHOICES} is the most"
        raise ProblemError("invalid-request", f"{detail}: send several requests, or a batch", param="prompt")
    return prompts


def messages_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """The conversation in plain text.

    Raises:
        ProblemError: a message without content, with a part that is not text, or a call without arguments.
    """
    return [
        Message(
            role=_ROLES[message.role],
            content=_text_of(message, f"messages.{index}.content"),
            tool_calls=tuple(_call_of(call, f"messages.{index}.tool_calls") for call in message.tool_calls or ()),
            tool_call_id=message.tool_call_id,
        )
        for index, message in enumerate(messages)
    ]


def usage_of(usages: Sequence[Usage], n: int) -> OpenAIUsage:
    """The usage of ``n`` answers to each prompt, in the order of the prompts; each prompt counts once."""
    prompts = sum(usage.prompt_tokens for usage in usages[::n])
    completions = sum(usage.completion_tokens for usage in usages)
    return OpenAIUsage(prompt_tokens=prompts, completion_tokens=completions, total_tokens=prompts + completions)


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """As a chat completion's ``choices[].logprobs``."""
    return {
        "content": [
            {
                **_token(token.token, token.logprob),
                "top_logprobs": [_token(other, logprob) for other, logprob in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def completion_logprobs(
    tokens: Sequence[TokenLogprob], offset: int = 0, *, prompt: EchoedPrompt | None = None, echoed: str = ""
) -> dict[str, Any]:
    """As a completion's ``choices[].logprobs``; ``offset`` is the length of the text before, with a character of which
    only a part was told. ``prompt`` is told in front of the tokens, and its text in the choice is ``echoed``; nothing
    is known of its first token."""
    texts: list[str] = []
    logprobs: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    if prompt is not None:
        texts.append(_text(prompt.first))
        logprobs.append(None)
        tops.append(None)
        pieces = [_text(piece) for piece in (prompt.first, *(token.token for token in prompt.others))]
        offsets += _offsets(echoed, pieces, offset)
        offset += len(echoed)
    for token in tokens:
        # What goes on with a character stands where that does.
        offsets.append(max(offset - 1, 0) if token.token and _goes_on(token.token[0]) else offset)
        offset += characters([token])
    for token in (*(prompt.others if prompt is not None else ()), *tokens):
        texts.append(_text(token.token))
        logprobs.append(_finite(token.logprob))
        top: dict[str, float] = {}
        for other, logprob in token.top:
            # Parts of characters look alike; the first of them is the likeliest.
            top.setdefault(_text(other), _finite(logprob))
        tops.append(top)
    return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


def characters(tokens: Sequence[TokenLogprob]) -> int:
    """How many characters begin in the tokens."""
    return sum(not _goes_on(byte) for token in tokens for byte in token.token)


def _goes_on(byte: int) -> bool:
    """Whether a byte is not the first one of its character in UTF-8."""
    return byte & 0b1100_0000 == 0b1000_0000


def _offsets(text: str, pieces: Sequence[str], start: int) -> list[int]:
    """Where each token of a text begins in it. One that isn't there as it is, a part of a character or a mark in front
    of the text, stands where the one behind it does."""
    offsets = []
    at = 0
    for piece in pieces:
        found = text.find(piece, at)
        offsets.append(start + (at if found < 0 else found))
        at = at if found < 0 else found + len(piece)
    return offsets


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(token), "logprob": _finite(logprob), "bytes": list(token)}


def _text(token: bytes) -> str:
    return token.decode(errors="replace")


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI's service tells very unlikely tokens as -9999."""
    return max(logprob, -9999.0)


def _call_of(call: ToolCallItem, place: str) -> ToolCall:
    try:
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ProblemError("invalid-request", f"{place}: `arguments` is no JSON object", param=place)
    return ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)


def _text_of(message: ChatMessage, place: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if not message.content and message.tool_calls:
        return ""
    if not message.content:
        raise ProblemError("invalid-request", f"{place}: the message has no content", param=place)
    texts = []
    for number, part in enumerate(message.content):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            where = f"{place}.{number}"
            raise ProblemError("invalid-request", f"{where}: only parts of type `text` are served", param=where)
        texts.append(part["text"])
    return "".join(texts)
