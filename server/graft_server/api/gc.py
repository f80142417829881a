"""Garbage collection: old versions that nothing needs any more."""

from __future__ import annotations

from fastapi import APIRouter

from graft_client.schemas.lifecycle import GcReport, GcRequest
from graft_server.api.deps import ServicesDep

router = APIRouter(prefix="/api/gc", tags=["adapters"])


@router.post("")
async def collect_garbage(body: GcRequest, services: ServicesDep) -> GcReport:
    """Delete old versions that nothing needs; with `dry_run`, as is the default, only say which those are."""
    return await services.cleaner.collect(body)
