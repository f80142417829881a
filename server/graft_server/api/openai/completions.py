"""``/v1/completions``: the prompt's text as it is, without chat template or task."""

from __future__ import annotations

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
from graft_server.registry.reading import with_files
from graft_server.services import Services
from graft_server.serving.choices import answer_all, choices, stream_all
from graft_server.serving.pipeline import Plan, plan_verbatim
from graft_server.serving.predictor import Answer, Piece

router = APIRouter(prefix="/v1", tags=["openai"])

#: OpenAI's default where the caller sets no ``max_tokens``.
_DEFAULT_MAX_TOKENS = 16


@router.post("/completions")
async def completions(body: CompletionRequest, request: Request, services: ServicesDep, terms: TermsDep) -> Response:
    """Continue one or several texts, whole or streamed, each once or `n` times."""
    include_usage = wants_usage(body)
    sampling = {"max_tokens": _DEFAULT_MAX_TOKENS, **sampling_of(body)}
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not prompts:
        raise ProblemError("invalid-request", "`prompt` holds no text", param="prompt")
    n = body.n or 1
    planned = await with_files(services.registry, _plan, services, body.model, prompts, sampling, body.user)
    plans = [each for plan in planned for each in choices(plan, n)]
    head: dict[str, Any] = {
        "id": f"cmpl-{time.time_ns():x}",
        "object": "text_completion",
        "created": int(time.time()),
        "system_fingerprint": services.system_fingerprint,
    }
    wants_logprobs = body.logprobs is not None
    if body.stream:
        items = await begin(request, stream_all(services.predictor, plans, terms))
        head["model"] = plans[0].answering.ref
        chunks = _chunks(items, head, n, wants_logprobs, include_usage)
        return StreamResponse(chunks, media_type=EVENTS, headers=route_headers(plans[0].answering))
    answers = await until_disconnect(request, answer_all(services.predictor, plans, terms))
    document = {
        **head,
        "model": plans[0].answering.ref,
        "choices": [
            {
                "index": index,
                "text": answer.parsed.text,
                "logprobs": completion_logprobs(answer.tokens) if wants_logprobs else None,
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ],
        "usage": usage_of([answer.usage for answer in answers], n).model_dump(),
    }
    return JSONResponse(document, headers=route_headers(plans[0].answering))


def _plan(
    services: Services, model: str, prompts: Sequence[str], sampling: dict[str, Any], key: str | None
) -> list[Plan]:
    route = services.resolver.resolve(model, None, prompts[0], key=key)
    return [plan_verbatim(route, prompt, sampling=sampling) for prompt in prompts]


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
