"""Predictions by a task's own schema: one, streamed, or in bulk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from graft_client.schemas.predict import BulkLine, BulkRequest, PredictEvent, PredictRequest, PredictResponse
from graft_server.api.deps import ServicesDep
from graft_server.api.problems import any_problem, problem_document
from graft_server.api.streaming import (
    EVENTS,
    NDJSON,
    StreamResponse,
    begin,
    event,
    ndjson,
    plan_in_time,
    until_disconnect,
)
from graft_server.routing.resolver import Route
from graft_server.serving.predictor import Answer, Piece, Predictor

router = APIRouter(prefix="/api/predict", tags=["predict"])


@router.post("", response_model=PredictResponse)
async def predict(body: PredictRequest, request: Request, services: ServicesDep) -> Response:
    """Answer one request; with ``stream``, as server-sent events ``delta`` and ``result`` (or ``error``)."""
    predictor = services.predictor
    terms = predictor.terms_of(body)
    plan = await plan_in_time(request, terms, predictor.prepare(body))
    if body.stream:
        events = await begin(request, predictor.stream(plan, terms))
        return StreamResponse(_events(events), media_type=EVENTS, headers=route_headers(plan.answering))
    answer = await until_disconnect(request, predictor.answer(plan, terms))
    return Response(
        answer.document().model_dump_json(), media_type="application/json", headers=route_headers(answer.route)
    )


@router.post("/bulk", response_class=StreamingResponse)
async def predict_bulk(body: BulkRequest, services: ServicesDep) -> StreamResponse:
    """Answer many requests as NDJSON lines, in the order in which they finish."""
    lines = bulk_lines(services.predictor, body.items, concurrency=services.settings.max_sequences)
    return StreamResponse(ndjson(lines), media_type=NDJSON)


def route_headers(route: Route) -> dict[str, str]:
    """Which version answers, and why where the caller left it open."""
    headers = {"X-Graft-Adapter": route.ref}
    if route.note:
        headers["X-Graft-Route"] = route.note
    return headers


async def bulk_lines(
    predictor: Predictor, items: Sequence[PredictRequest], *, concurrency: int
) -> AsyncGenerator[BulkLine]:
    """A line an item as it finishes, with at most ``concurrency`` in flight; closing it aborts the rest. Where a limit
    is reached they go on at its pace, unless that takes longer than an item's timeout."""
    # Bounded, so that a slow reader slows the work down instead of filling memory.
    lines: asyncio.Queue[BulkLine] = asyncio.Queue(concurrency)
    pending = iter(enumerate(items))

    async def work() -> None:
        for index, item in pending:
            try:
                plan = await predictor.prepare(item)
                async with predictor.charged([plan], patience=predictor.terms_of(item).timeout) as (charge,):
                    # Its time begins when it is let in.
                    answer = await predictor.answer(plan, predictor.terms_of(item), charge=charge)
                line = BulkLine(index=index, result=answer.document())
            except Exception as error:
                line = BulkLine(index=index, problem=problem_document(any_problem(error)))
            await lines.put(line)

    workers = [asyncio.create_task(work()) for _ in range(min(concurrency, len(items)))]
    try:
        for _ in items:
            yield await lines.get()
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _events(items: AsyncGenerator[Piece | Answer]) -> AsyncGenerator[str]:
    async with aclosing(items):
        try:
            async for item in items:
                if isinstance(item, Answer):
                    yield event(PredictEvent(event="result", result=item.document()), name="result")
                elif item.text:
                    yield event(PredictEvent(event="delta", delta=item.text), name="delta")
        except Exception as error:
            problem = problem_document(any_problem(error))
            yield event(PredictEvent(event="error", problem=problem), name="error")
