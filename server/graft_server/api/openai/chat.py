"""``/v1/chat/completions``: a conversation, answered by the task of the adapter that ``model`` names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from graft_client.schemas.openai import ChatCompletionRequest
from graft_plugins.task import Message
from graft_server.api.deps import ServicesDep, TermsDep
from graft_server.api.openai.shapes import chat_logprobs, messages_of, sampling_of, usage_of, wants_usage
from graft_server.api.openai.stream import DONE, chunk, error_chunk
from graft_server.api.predict import route_headers
from graft_server.api.streaming import EVENTS, StreamResponse, begin, until_disconnect
from graft_server.services import Services
from graft_server.serving.pipeline import Plan, plan_messages
from graft_server.serving.predictor import Answer, Piece

router = APIRouter(prefix="/v1/chat", tags=["openai"])


@router.post("/completions")
async def chat_completions(
    body: ChatCompletionRequest, request: Request, services: ServicesDep, terms: TermsDep
) -> Response:
    """Answer a conversation, whole or streamed."""
    include_usage = wants_usage(body)
    sampling = sampling_of(body)
    messages = messages_of(body.messages)
    plan = await asyncio.to_thread(_plan, services, body.model, messages, sampling)
    headers = route_headers(plan.route)
    head = {
        "id": f"chatcmpl-{time.time_ns():x}",
        "created": int(time.time()),
        "model": plan.route.ref,
        "system_fingerprint": services.system_fingerprint,
    }
    if body.stream:
        items = await begin(request, services.predictor.stream(plan, terms))
        chunks = _chunks(items, head, bool(body.logprobs), include_usage)
        return StreamResponse(chunks, media_type=EVENTS, headers=headers)
    answer = await until_disconnect(request, services.predictor.answer(plan, terms))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.parsed.text, "refusal": None},
        "logprobs": chat_logprobs(answer.tokens) if body.logprobs else None,
        "finish_reason": answer.finish_reason,
    }
    document = {
        **head,
        "object": "chat.completion",
        "choices": [choice],
        "usage": usage_of(answer.usage).model_dump(),
    }
    return JSONResponse(document, headers=headers)


def _plan(services: Services, model: str, messages: Sequence[Message], sampling: dict[str, Any]) -> Plan:
    last = next((message.content for message in reversed(messages) if message.role == "user"), "")
    route = services.resolver.resolve(model, None, last)
    return plan_messages(route, messages, sampling=sampling)


async def _chunks(
    items: AsyncGenerator[Piece | Answer], head: dict[str, Any], logprobs: bool, include_usage: bool
) -> AsyncGenerator[str]:
    base = {**head, "object": "chat.completion.chunk"}
    if include_usage:
        base["usage"] = None

    def choice(delta: dict[str, Any], *, tokens: Any = None, finish: str | None = None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": tokens, "finish_reason": finish}

    async with aclosing(items):
        try:
            yield chunk({**base, "choices": [choice({"role": "assistant", "content": ""})]})
            streamed = False
            async for item in items:
                if isinstance(item, Piece):
                    streamed = True
                    tokens = chat_logprobs(item.tokens) if logprobs else None
                    yield chunk({**base, "choices": [choice({"content": item.text}, tokens=tokens)]})
                    continue
                # Scored answers have no pieces: their text comes whole.
                if not streamed and item.parsed.text:
                    yield chunk({**base, "choices": [choice({"content": item.parsed.text})]})
                yield chunk({**base, "choices": [choice({}, finish=item.finish_reason)]})
                if include_usage:
                    yield chunk({**base, "choices": [], "usage": usage_of(item.usage).model_dump()})
        except Exception as error:
            yield error_chunk(error)
        yield DONE
