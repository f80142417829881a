"""``/v1/responses``: text in, text out, kept so that a later request can go on from it."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from graft_client.schemas.openai_files import ListPage
from graft_client.schemas.openai_responses import KeptInput, ResponseDeleted, ResponseObject, ResponseRequest
from graft_server.api.deps import ServicesDep, TermsDep
from graft_server.api.openai.pages import After, Order, behind, page_of
from graft_server.api.openai.response_events import response_events
from graft_server.api.openai.response_plan import plan_response
from graft_server.api.predict import route_headers
from graft_server.api.streaming import EVENTS, StreamResponse, begin, plan_in_time, until_disconnect
from graft_server.problems import ProblemError

router = APIRouter(prefix="/v1/responses", tags=["openai"])


@router.post("", response_model=ResponseObject)
async def create_response(body: ResponseRequest, request: Request, services: ServicesDep, terms: TermsDep) -> Response:
    """Answer a text or a conversation, whole or streamed; kept for `response_days`, unless `store` is false."""
    planned = await plan_in_time(request, terms, plan_response(services, body))
    if body.stream:
        items = await begin(request, services.predictor.stream(planned.plan, terms))
        chunks = response_events(services, items, planned)
        return StreamResponse(chunks, media_type=EVENTS, headers=route_headers(planned.plan.answering))
    document = await until_disconnect(request, planned.answer(services, terms))
    headers = route_headers(planned.plan.answering)
    return Response(document.model_dump_json(), media_type="application/json", headers=headers)


@router.get("/{response_id}")
async def show_response(response_id: str, services: ServicesDep, stream: bool = False) -> ResponseObject:
    """A kept response, whole."""
    if stream:
        detail = "`stream`: a kept response is not streamed again; leave it out"
        raise ProblemError("unsupported-parameter", detail, param="stream")
    record = await asyncio.to_thread(services.registry.documents.get, "response", response_id)
    return ResponseObject.model_validate(record.data["response"])


@router.get("/{response_id}/input_items")
async def list_input(
    response_id: str,
    services: ServicesDep,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
) -> ListPage[KeptInput]:
    """What a kept response was asked with, the last message first; not what came before by `previous_response_id`."""
    record = await asyncio.to_thread(services.registry.documents.get, "response", response_id)
    items = [KeptInput.model_validate(item) for item in record.data["input"]]
    if order == "desc":
        items.reverse()
    return page_of(behind(items, after, "the response has no item"), limit)


@router.delete("/{response_id}")
async def delete_response(response_id: str, services: ServicesDep) -> ResponseDeleted:
    """Delete a kept response. Later ones that went on from it stay, with what was said before them."""
    await asyncio.to_thread(services.registry.documents.remove, "response", response_id)
    return ResponseDeleted(id=response_id)
