"""``/v1/completions``: the prompt's text as it is, without chat template or task."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from graft_client.schemas.common import Usage
from graft_client.schemas.openai import CompletionRequest
from graft_client.schemas.openai_answers import Completion
from graft_server.api.deps import ServicesDep, TermsDep
from graft_server.api.openai.completion_plan import CompletionPlan, plan_completion
from graft_server.api.openai.shapes import characters, usage_of, wants_usage
from graft_server.api.openai.stream import DONE, chunk, error_chunk
from graft_server.api.predict import route_headers
from graft_server.api.streaming import EVENTS, StreamResponse, begin, plan_in_time, until_disconnect
from graft_server.serving.choices import stream_all
from graft_server.serving.predictor import Answer, Piece

router = APIRouter(prefix="/v1", tags=["openai"])

_EMPTY: dict[str, Any] = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}


@router.post("/completions", response_model=Completion)
async def completions(body: CompletionRequest, request: Request, services: ServicesDep, terms: TermsDep) -> Response:
    """Continue one or several texts, whole or streamed, each once or `n` times."""
    include_usage = wants_usage(body)
    planned = await plan_in_time(request, terms, plan_completion(services, body))
    if body.stream:
        items = await begin(request, stream_all(services.predictor, planned.plans, terms))
        chunks = _chunks(items, planned, services.system_fingerprint, include_usage)
        return StreamResponse(chunks, media_type=EVENTS, headers=route_headers(planned.plans[0].answering))
    document = await until_disconnect(request, planned.answer(services, terms))
    headers = route_headers(planned.plans[0].answering)
    return Response(document.model_dump_json(), media_type="application/json", headers=headers)


async def _chunks(
    items: AsyncGenerator[tuple[int, Piece | Answer]],
    planned: CompletionPlan,
    fingerprint: str | None,
    include_usage: bool,
) -> AsyncGenerator[str]:
    base: dict[str, Any] = {
        "id": planned.id,
        "object": "text_completion",
        "created": planned.created,
        "model": planned.plans[0].answering.ref,
        "system_fingerprint": fingerprint,
    }
    if include_usage:
        base["usage"] = None
    usages: dict[int, Usage] = {}
    offsets: Counter[int] = Counter()
    async with aclosing(items):
        try:
            for index in range(len(planned.plans)):
                # The engine tells the others, with the first piece of their answers.
                if not planned.plans[index].echo and (echoed := planned.echoed(index)):
                    yield chunk({**base, "choices": [{**_EMPTY, "index": index, "text": echoed}]})
            async for index, item in items:
                choice: dict[str, Any] = {**_EMPTY, "index": index}
                if isinstance(item, Piece):
                    told = planned.plans[index].echo and item.prompt is not None
                    echoed = planned.echoed(index, item.prompt) if told else ""
                    choice["text"] = echoed + item.text
                    choice["logprobs"] = planned.logprobs(index, item.tokens, item.prompt, offsets[index])
                    # Not of the text, which waits for characters to be whole.
                    offsets[index] += len(echoed) + characters(item.tokens)
                else:
                    choice["finish_reason"] = item.finish_reason
                    usages[index] = item.usage
                yield chunk({**base, "choices": [choice]})
            if include_usage:
                usage = usage_of([usages[index] for index in sorted(usages)], planned.n)
                yield chunk({**base, "choices": [], "usage": usage.model_dump()})
        except Exception as error:
            yield error_chunk(error)
        yield DONE
