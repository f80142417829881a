"""``/v1/chat/completions``: a conversation, answered by the task of the adapter that ``model`` names."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from graft_client.schemas.common import Usage
from graft_client.schemas.openai import ChatCompletionRequest
from graft_client.schemas.openai_answers import ChatCompletion
from graft_server.api.deps import ServicesDep, TermsDep
from graft_server.api.openai.chat_plan import ChatPlan, plan_chat
from graft_server.api.openai.shapes import chat_logprobs, usage_of, wants_usage
from graft_server.api.openai.stream import DONE, chunk, error_chunk
from graft_server.api.predict import route_headers
from graft_server.api.streaming import EVENTS, StreamResponse, begin, plan_in_time, until_disconnect
from graft_server.serving.choices import stream_all
from graft_server.serving.predictor import Answer, Piece

router = APIRouter(prefix="/v1/chat", tags=["openai"])


@router.post("/completions", response_model=ChatCompletion)
async def chat_completions(
    body: ChatCompletionRequest, request: Request, services: ServicesDep, terms: TermsDep
) -> Response:
    """Answer a conversation, whole or streamed, once or `n` times."""
    include_usage = wants_usage(body)
    planned = await plan_in_time(request, terms, plan_chat(services, body))
    if body.stream:
        items = await begin(request, stream_all(services.predictor, planned.plans, terms))
        chunks = _chunks(items, planned, services.system_fingerprint, include_usage)
        return StreamResponse(chunks, media_type=EVENTS, headers=route_headers(planned.plan.answering))
    document = await until_disconnect(request, planned.answer(services, terms))
    headers = route_headers(planned.plan.answering)
    return Response(document.model_dump_json(), media_type="application/json", headers=headers)


async def _chunks(
    items: AsyncGenerator[tuple[int, Piece | Answer]], planned: ChatPlan, fingerprint: str | None, include_usage: bool
) -> AsyncGenerator[str]:
    base: dict[str, Any] = {
        "id": planned.id,
        "created": planned.created,
        "model": planned.plan.answering.ref,
        "system_fingerprint": fingerprint,
        "object": "chat.completion.chunk",
    }
    if include_usage:
        base["usage"] = None
    streamed: set[int] = set()
    usages: list[Usage] = []
    readers = [planned.reader() for _ in planned.plans]

    def choice(index: int, delta: dict[str, Any], *, tokens: Any = None, finish: str | None = None) -> str:
        each = {"index": index, "delta": delta, "logprobs": tokens, "finish_reason": finish}
        return chunk({**base, "choices": [each]})

    async with aclosing(items):
        try:
            for index in range(len(planned.plans)):
                yield choice(index, {"role": "assistant", "content": ""})
            async for index, item in items:
                reader = readers[index]
                if isinstance(item, Piece):
                    streamed.add(index)
                    tokens = chat_logprobs(item.tokens) if planned.body.logprobs else None
                    text = item.text if reader is None else reader.push(item.text)
                    if text or tokens is not None:
                        yield choice(index, {"content": text}, tokens=tokens)
                    continue
                # Scored answers have no pieces: their text comes whole.
                if index not in streamed and item.parsed.text:
                    yield choice(index, {"content": item.parsed.text})
                rest, calls = reader.finish() if reader is not None else ("", [])
                if rest:
                    yield choice(index, {"content": rest})
                for at, call in enumerate(calls):
                    yield choice(index, {"tool_calls": [{"index": at, **call.model_dump()}]})
                usages.append(item.usage)
                yield choice(index, {}, finish="tool_calls" if calls else item.finish_reason)
            if include_usage:
                yield chunk({**base, "choices": [], "usage": usage_of(usages, len(planned.plans)).model_dump()})
        except Exception as error:
            yield error_chunk(error)
        yield DONE
