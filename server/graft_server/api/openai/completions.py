"""``/v1/completions``: the prompt's text as it is, without chat template or task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from graft_client.schemas.common import Usage
from graft_client.schemas.openai import CompletionRequest
from graft_server.api.deps import ServicesDep, TermsDep
from graft_server.api.openai.shapes import completion_logprobs, sampling_of, usage_of, wants_usage
from graft_server.api.openai.stream import DONE, chunk, error_chunk
from graft_server.api.predict import route_headers
from graft_server.api.streaming import EVENTS, StreamResponse, begin, until_disconnect
from graft_server.problems import ProblemError
from graft_server.services import Services
from graft_server.serving.pipeline import Plan, plan_verbatim
from graft_server.serving.predictor import Answer, Piece, Predictor, Terms

router = APIRouter(prefix="/v1", tags=["openai"])

#: OpenAI's default where the caller sets no ``max_tokens``.
_DEFAULT_MAX_TOKENS = 16


@router.post("/completions")
async def completions(body: CompletionRequest, request: Request, services: ServicesDep, terms: TermsDep) -> Response:
    """Continue one or several texts, whole or streamed."""
    include_usage = wants_usage(body)
    sampling = {"max_tokens": _DEFAULT_MAX_TOKENS, **sampling_of(body)}
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not prompts:
        raise ProblemError("invalid-request", "`prompt` holds no text", param="prompt")
    plans = await asyncio.to_thread(_plan, services, body.model, prompts, sampling)
    route = plans[0].route
    headers = route_headers(route)
    head = {
        "id": f"cmpl-{time.time_ns():x}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": route.ref,
        "system_fingerprint": services.system_fingerprint,
    }
    wants_logprobs = body.logprobs is not None
    if body.stream:
        items = await begin(request, _in_order(services.predictor, plans, terms))
        chunks = _chunks(items, head, wants_logprobs, include_usage)
        return StreamResponse(chunks, media_type=EVENTS, headers=headers)
    answers = await until_disconnect(request, _all(services.predictor, plans, terms))
    choices = [
        {
            "index": index,
            "text": answer.parsed.text,
            "logprobs": completion_logprobs(answer.tokens) if wants_logprobs else None,
            "finish_reason": answer.finish_reason,
        }
        for index, answer in enumerate(answers)
    ]
    usage = usage_of(_sum(answer.usage for answer in answers))
    return JSONResponse({**head, "choices": choices, "usage": usage.model_dump()}, headers=headers)


def _plan(services: Services, model: str, prompts: Sequence[str], sampling: dict[str, Any]) -> list[Plan]:
    route = services.resolver.resolve(model, None, prompts[0])
    return [plan_verbatim(route, prompt, sampling=sampling) for prompt in prompts]


async def _all(predictor: Predictor, plans: Sequence[Plan], terms: Terms) -> list[Answer]:
    """All answers, in the prompts' order; the first failure ends the others."""
    tasks = [asyncio.create_task(predictor.answer(plan, terms)) for plan in plans]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _in_order(
    predictor: Predictor, plans: Sequence[Plan], terms: Terms
) -> AsyncGenerator[tuple[int, Piece | Answer]]:
    """Pieces and answers with the index of their prompt, one prompt behind the other."""
    for index, plan in enumerate(plans):
        async with aclosing(predictor.stream(plan, terms)) as items:
            async for item in items:
                yield index, item


async def _chunks(
    items: AsyncGenerator[tuple[int, Piece | Answer]],
    head: dict[str, Any],
    wants_logprobs: bool,
    include_usage: bool,
) -> AsyncGenerator[str]:
    base = {**head, "usage": None} if include_usage else head
    usages: list[Usage] = []
    offset = 0
    async with aclosing(items):
        try:
            async for index, item in items:
                choice: dict[str, Any] = {"index": index, "text": "", "logprobs": None, "finish_reason": None}
                if isinstance(item, Piece):
                    choice["text"] = item.text
                    if wants_logprobs:
                        choice["logprobs"] = completion_logprobs(item.tokens, offset)
                    offset += len(item.text)
                else:
                    choice["finish_reason"] = item.finish_reason
                    usages.append(item.usage)
                    offset = 0
                yield chunk({**base, "choices": [choice]})
            if include_usage:
                yield chunk({**base, "choices": [], "usage": usage_of(_sum(usages)).model_dump()})
        except Exception as error:
            yield error_chunk(error)
        yield DONE


def _sum(usages: Any) -> Usage:
    total = Usage()
    for usage in usages:
        total = Usage(
            prompt_tokens=total.prompt_tokens + usage.prompt_tokens,
            completion_tokens=total.completion_tokens + usage.completion_tokens,
        )
    return total
