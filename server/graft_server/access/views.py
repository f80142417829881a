"""Keys as documents of the API."""

from __future__ import annotations

from graft_client.schemas.keys import KeyInfo
from graft_server.registry.records import KeyRecord


def key_info(record: KeyRecord) -> KeyInfo:
    return KeyInfo(
        id=record.id,
        name=record.name,
        scopes=list(record.scopes),
        adapters=list(record.adapters),
        tenant=record.tenant,
        created_at=record.created_at,
        expires_at=record.expires_at,
        revoked_at=record.revoked_at,
        limits=record.limits,
    )
