"""``/v1/completions``: the prompt's text as it is, without chat template or task."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
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
from graft_server.serving.choices import answer_all, choices, stream_all
from graft_server.serving.pipeline import Plan, plan_verbatim
from graft_server.serving.predictor import Answer, Piece, Terms

router = APIRouter(prefix="/v1", tags=["openai"])

#: OpenAI's default where the caller sets no ``max_tokens``.
_DEFAULT_MAX_TOKENS = 16


@router.post("/completions")
async def completions(body: CompletionRequest, request: Request, services: ServicesDep, terms: TermsDep) -> Response:
    """Continue one or several texts, whole or streamed, each once or `n` times."""
    include_usage = wants_usage(body)
    n = body.n or 1
    plans = await asyncio.to_thread(_plans, services, body)
    head = _head(services)
    if body.stream:
        items = await begin(request, stream_all(services.predictor, plans, terms))
        head["model"] = plans[0].answering.ref
        chunks = _chunks(items, head, n, body.logprobs is not None, include_usage)
        return StreamResponse(chunks, media_type=EVENTS, headers=route_headers(plans[0].answering))
    answers = await until_disconnect(request, answer_all(services.predictor, plans, terms))
    return JSONResponse(_whole(body, head, plans, answers), headers=route_headers(plans[0].answering))


async def complete(services: Services, body: CompletionRequest, terms: Terms) -> dict[str, Any]:
    """The whole answer to a request that nobody waits for on a connection.

    Raises:
        ProblemError: as for any request.
    """
    plans = await asyncio.to_thread(_plans, services, body)
    return _whole(body, _head(services), plans, await answer_all(services.predictor, plans, terms))


def _head(services: Services) -> dict[str, Any]:
    return {
        "id": f"cmpl-{time.time_ns():x}",
        "object": "text_completion",
        "created": int(time.time()),
        "system_fingerprint": services.system_fingerprint,
    }


def _whole(
    body: CompletionRequest, head: dict[str, Any], plans: Sequence[Plan], answers: Sequence[Answer]
) -> dict[str, Any]:
    return {
        **head,
        "model": plans[0].answering.ref,
        "choices": [
            {
                "index": index,
                "text": answer.parsed.text,
                "logprobs": completion_logprobs(answer.tokens) if body.logprobs is not None else None,
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ],
        "usage": usage_of([answer.usage for answer in answers], body.n or 1).model_dump(),
    }


def _plans(services: Services, body: CompletionRequest) -> list[Plan]:
    """``n`` plans for each prompt, side by side. Blocking."""
    sampling = {"max_tokens": _DEFAULT_MAX_TOKENS, **sampling_of(body)}
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not prompts:
        raise ProblemError("invalid-request", "`prompt` holds no text", param="prompt")
    route = services.resolver.resolve(body.model, None, prompts[0], key=body.user)
    planned = (plan_verbatim(route, prompt, sampling=sampling) for prompt in prompts)
    return [each for plan in planned for each in choices(plan, body.n or 1)]


async def _chunks(
    items: AsyncGenerator[tuple[int, Piece | Answer]],
    head: dict[str, Any],
    n: int,
    wants_logprobs: bool,
    include_usage: bool,
) -> AsyncGenerator[str]:
    base = {**head, "usage": None} if include_usage else head
    usages: dict[int, Usage] = {}
    offsets: Counter[int] = Counter()
    async with aclosing(items):
        try:
            async for index, item in items:
                choice: dict[str, Any] = {"index": index, "text": "", "logprobs": None, "finish_reason": None}
                if isinstance(item, Piece):
                    choice["text"] = item.text
                    if wants_logprobs:
                        choice["logprobs"] = completion_logprobs(item.tokens, offsets[index])
                    offsets[index] += len(item.text)
                else:
                    choice["finish_reason"] = item.finish_reason
                    usages[index] = item.usage
                yield chunk({**base, "choices": [choice]})
            if include_usage:
                usage = usage_of([usages[index] for index in sorted(usages)], n)
                yield chunk({**base, "choices": [], "usage": usage.model_dump()})
        except Exception as error:
            yield error_chunk(error)
        yield DONE
