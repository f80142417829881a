"""Keys: making, listing and revoking them; and the log of changes."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from graft_client.schemas.keys import AuditItem, KeyCreate, KeyInfo, NewKey
from graft_client.schemas.limits import LimitsChange
from graft_server.access.making import make_key
from graft_server.access.views import key_info
from graft_server.api.deps import ServicesDep

router = APIRouter(prefix="/api", tags=["access"])


@router.post("/keys", status_code=201)
async def create_key(body: KeyCreate, services: ServicesDep) -> NewKey:
    """Make a key. The answer is the only place where it is ever shown."""
    made = await asyncio.to_thread(make_key, services.registry, body)
    services.keyring.changed()
    return made


@router.get("/keys")
async def list_keys(services: ServicesDep) -> list[KeyInfo]:
    """Every key, the oldest first, revoked ones included."""
    return [key_info(record) for record in await asyncio.to_thread(services.registry.keys)]


@router.delete("/keys/{key_id}")
async def revoke_key(key_id: str, services: ServicesDep) -> KeyInfo:
    """End a key at once; what it has in flight ends within a second."""
    record = await asyncio.to_thread(services.registry.revoke_key, key_id)
    services.keyring.changed()
    return key_info(record)


@router.post("/keys/{key_id}/limits")
async def limit_key(key_id: str, body: LimitsChange, services: ServicesDep) -> KeyInfo:
    """Change how much a key may ask. What it has in flight goes on."""
    record = await asyncio.to_thread(services.registry.limit_key, key_id, body)
    services.keyring.changed()
    return key_info(record)


@router.get("/audit")
async def audit(
    services: ServicesDep,
    target: str | None = None,
    before: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[AuditItem]:
    """The newest changes first; of one `target`, and before the entry `before`."""
    found = await asyncio.to_thread(lambda: services.registry.audit(target=target, before=before, limit=limit))
    return [
        AuditItem(
            seq=item.seq,
            time=item.time,
            actor=item.actor,
            action=item.action,
            target=item.target,
            detail=item.detail,
        )
        for item in found
    ]
