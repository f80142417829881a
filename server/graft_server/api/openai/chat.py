"""``/v1/chat/completions``: a conversation, answered by the task of the adapter that ``model`` names."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from graft_client.schemas.common import Usage
from graft_client.schemas.openai import ChatCompletionRequest
from graft_plugins.task import Message
from graft_server.api.deps import ServicesDep, TermsDep
from graft_server.api.openai.shapes import chat_logprobs, messages_of, sampling_of, usage_of, wants_usage
from graft_server.api.openai.stream import DONE, chunk, error_chunk
from graft_server.api.predict import route_headers
from graft_server.api.streaming import EVENTS, StreamResponse, begin, until_disconnect
from graft_server.registry.reading import with_files
from graft_server.services import Services
from graft_server.serving.choices import answer_all, choices, stream_all
from graft_server.serving.pipeline import Plan, plan_messages
from graft_server.serving.predictor import Answer, Piece

router = APIRouter(prefix="/v1/chat", tags=["openai"])


@router.post("/completions")
async def chat_completions(
    body: ChatCompletionRequest, request: Request, services: ServicesDep, terms: TermsDep
) -> Response:
    """Answer a conversation, whole or streamed, once or `n` times."""
    include_usage = wants_usage(body)
    sampling = sampling_of(body)
    messages = messages_of(body.messages)
    plan = await with_files(services.registry, _plan, services, body.model, messages, sampling, body.user)
    plans = choices(plan, body.n or 1)
    head: dict[str, Any] = {
        "id": f"chatcmpl-{time.time_ns():x}",
        "created": int(time.time()),
        "system_fingerprint": services.system_fingerprint,
    }
    if body.stream:
        items = await begin(request, stream_all(services.predictor, plans, terms))
        head["model"] = plan.answering.ref
        chunks = _chunks(items, head, len(plans), bool(body.logprobs), include_usage)
        return StreamResponse(chunks, media_type=EVENTS, headers=route_headers(plan.answering))
    answers = await until_disconnect(request, answer_all(services.predictor, plans, terms))
    document = {
        **head,
        "model": plan.answering.ref,
        "object": "chat.completion",
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.parsed.text, "refusal": None},
                "logprobs": chat_logprobs(answer.tokens) if body.logprobs else None,
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ],
        "usage": usage_of([answer.usage for answer in answers], len(plans)).model_dump(),
    }
    return JSONResponse(document, headers=route_headers(plan.answering))


def _plan(
    services: Services, model: str, messages: Sequence[Message], sampling: dict[str, Any], key: str | None
) -> Plan:
    # What the conversation is for often stands in the system message alone ("Translate from English to German.").
    last = next((message for message in reversed(messages) if message.role == "user"), None)
    told = [message.content for message in messages if message.role == "system" or message is last]
    route = services.resolver.resolve(model, None, "\n".join(told), key=key)
    return plan_messages(route, messages, sampling=sampling)


async def _chunks(
    items: AsyncGenerator[tuple[int, Piece | Answer]],
    head: dict[str, Any],
    n: int,
    logprobs: bool,
    include_usage: bool,
) -> AsyncGenerator[str]:
    base = {**head, "object": "chat.completion.chunk"}
    if include_usage:
        base["usage"] = None
    streamed: set[int] = set()
    usages: list[Usage] = []

    def choice(index: int, delta: dict[str, Any], *, tokens: Any = None, finish: str | None = None) -> str:
        each = {"index": index, "delta": delta, "logprobs": tokens, "finish_reason": finish}
        return chunk({**base, "choices": [each]})

    async with aclosing(items):
        try:
            for index in range(n):
                yield choice(index, {"role": "assistant", "content": ""})
            async for index, item in items:
                if isinstance(item, Piece):
                    streamed.add(index)
                    tokens = chat_logprobs(item.tokens) if logprobs else None
                    yield choice(index, {"content": item.text}, tokens=tokens)
                    continue
                # Scored answers have no pieces: their text comes whole.
                if index not in streamed and item.parsed.text:
                    yield choice(index, {"content": item.parsed.text})
                usages.append(item.usage)
                yield choice(index, {}, finish=item.finish_reason)
            if include_usage:
                yield chunk({**base, "choices": [], "usage": usage_of(usages, n).model_dump()})
        except Exception as error:
            yield error_chunk(error)
        yield DONE
