"""Aliases such as `name@production`: moving them, behind a gate if wanted, going back, and their history."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from graft_client.schemas.lifecycle import AliasEvent, ChangeRequest, GateEvent, GateRequest, PromoteRequest
from graft_client.schemas.predict import EvaluationRequest
from graft_server.api.deps import ServicesDep, WhoDep, require_engine
from graft_server.api.evaluations import Evaluation, lines, prepare
from graft_server.api.problems import any_problem, problem_document
from graft_server.api.streaming import NDJSON, StreamResponse, ndjson
from graft_server.api.views import alias_event
from graft_server.problems import ProblemError
from graft_server.registry.reading import with_files
from graft_server.registry.records import AliasRecord
from graft_server.services import Services
from graft_server.serving.promotion import Promotion

router = APIRouter(prefix="/api/adapters/{name}", tags=["aliases"])


@router.post("/aliases/{alias}")
async def promote(name: str, alias: str, body: PromoteRequest, services: ServicesDep, who: WhoDep) -> AliasEvent:
    """Let an alias stand for a version, once the engine has read it."""
    promotion = await _promotion(services, name, alias, body, who)
    return alias_event(await promotion.carry_out())


@router.post("/aliases/{alias}/gate", response_class=StreamingResponse)
async def promote_behind_gate(
    name: str, alias: str, body: GateRequest, services: ServicesDep, who: WhoDep
) -> StreamResponse:
    """Measure a version beside the one in place (or the base), as NDJSON lines, and promote it if it is good enough."""
    promotion = await _promotion(services, name, alias, body, who)
    asked = EvaluationRequest(
        adapter=promotion.version.ref, dataset=body.dataset, against=promotion.against, limit=body.limit
    )
    evaluation = await with_files(services.registry, prepare, services, asked)
    return StreamResponse(ndjson(_gate(services, promotion, evaluation, body)), media_type=NDJSON)


@router.post("/aliases/{alias}/rollback")
async def rollback(name: str, alias: str, body: ChangeRequest, services: ServicesDep, who: WhoDep) -> AliasEvent:
    """Let an alias stand again for the version that was in place before."""
    aliases = services.registry.aliases
    return alias_event(await asyncio.to_thread(aliases.rollback, name, alias, who=who, why=body.why))


@router.delete("/aliases/{alias}")
async def remove_alias(name: str, alias: str, services: ServicesDep, who: WhoDep, why: str = "") -> AliasEvent:
    """Let an alias stand for nothing any more."""
    return alias_event(await asyncio.to_thread(services.registry.aliases.remove, name, alias, who=who, why=why))


@router.get("/history")
async def history(name: str, services: ServicesDep, alias: str | None = None) -> list[AliasEvent]:
    """What became of an adapter's aliases, or of one with `alias`, the newest first: who, when and why."""
    events = await asyncio.to_thread(services.registry.aliases.history, name, alias)
    return [alias_event(event) for event in events]


async def _promotion(services: Services, name: str, alias: str, body: PromoteRequest, who: str) -> Promotion:
    require_engine(services)
    registry = services.registry
    seen = await asyncio.to_thread(registry.aliases.get, name, alias)
    if body.in_place is not None and body.in_place != (seen.version.version if seen else 0):
        raise ProblemError("conflict", f"{name}@{alias} stands for {_now(seen)} by now; nothing was changed")
    version = await asyncio.to_thread(registry.version, name, body.version)
    promotion = Promotion(registry, services.engine, services.host, alias, version, seen, who, body.why)
    await promotion.check()
    return promotion


def _now(seen: AliasRecord | None) -> str:
    return seen.version.ref if seen else "no version"


async def _gate(
    services: Services, promotion: Promotion, evaluation: Evaluation, body: GateRequest
) -> AsyncGenerator[GateEvent]:
    async with aclosing(lines(services, evaluation)) as measured:
        async for line in measured:
            told = GateEvent(done=line.done, total=line.total, problem=line.problem)
            if line.summary is None:
                yield told
                continue
            try:
                record = await promotion.pass_gate(line.summary, body.dataset, body.min_delta)
                yield told.model_copy(update={"event": alias_event(record)})
            except Exception as error:
                yield told.model_copy(update={"problem": problem_document(any_problem(error))})
