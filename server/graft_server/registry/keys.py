"""API keys: rows in, records out. A key is ``graft_ID_SECRET``; the ID finds it, the SECRET proves it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from graft_client.schemas.limits import UNSET, Limits
from graft_server.registry import limits
from graft_server.registry.errors import ConflictError, UnknownError
from graft_server.registry.models import ApiKey, now
from graft_server.registry.records import KeyRecord

_PREFIX = "graft"
_ADMIN = "admin"


def create(
    session: Session,
    name: str,
    scopes: Sequence[str],
    *,
    adapters: Sequence[str],
    tenant: str | None,
    expires_at: datetime | None,
    granted: Limits = UNSET,
) -> tuple[ApiKey, str]:
    """A new key, and the text of it.

    Raises:
        ConflictError: the first key could make no others.
    """
    full = _ADMIN in scopes and not adapters and tenant is None
    if not any_exist(session) and (not full or expires_at is not None):
        raise ConflictError(
            "the first key must have the scope admin, without limits or expiry: from then on nobody gets in without "
            "a key, and it is what makes the others"
        )
    identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    key = ApiKey(
        id=identity,
        name=name,
        digest=digest_of(secret),
        scopes=sorted(set(scopes)),
        adapters=list(adapters),
        tenant=tenant,
        created_at=now(),
        expires_at=expires_at,
        limits=limits.column(granted),
    )
    session.add(key)
    session.flush()
    return key, f"{_PREFIX}_{identity}_{secret}"


def split(text: str) -> tuple[str, str] | None:
    """ID and SECRET of a key, or ``None`` where it is none."""
    prefix, _, rest = text.partition("_")
    identity, _, secret = rest.partition("_")
    return (identity, secret) if prefix == _PREFIX and identity and secret else None


def digest_of(secret: str) -> str:
    """sha256 (hex). A secret has 256 random bits, so that nothing slower is called for."""
    return hashlib.sha256(secret.encode()).hexdigest()


def get(session: Session, identity: str) -> ApiKey | None:
    return session.get(ApiKey, identity)


def find(session: Session, identity: str) -> ApiKey:
    """
    Raises:
        UnknownError: there is none.
    """
    key = session.get(ApiKey, identity)
    if key is None:
        raise UnknownError.among("key", identity, session.scalars(select(ApiKey.id)))
    return key


def list_all(session: Session) -> list[ApiKey]:
    return list(session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id)))


def any_exist(session: Session) -> bool:
    """Whether there ever was a key."""
    return session.scalar(select(ApiKey.id).limit(1)) is not None


def revoke(session: Session, identity: str) -> ApiKey:
    """End a key.

    Raises:
        UnknownError: there is none.
        ConflictError: it is the last that can make others.
    """
    key = find(session, identity)
    if key.revoked_at is None:
        others = (record(row) for row in list_all(session) if row is not key)
        if _is_full(record(key)) and not any(_is_full(other) and other.valid(now()) for other in others):
            raise ConflictError(f"key {identity!r} is the last with the scope admin: make another one first")
        key.revoked_at = now()
    return key


def _is_full(key: KeyRecord) -> bool:
    return _ADMIN in key.scopes and not key.adapters and key.tenant is None


def record(key: ApiKey) -> KeyRecord:
    return KeyRecord(
        id=key.id,
        name=key.name,
        digest=key.digest,
        scopes=tuple(key.scopes),
        adapters=tuple(key.adapters),
        tenant=key.tenant,
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        limits=limits.of_row(key.limits),
    )
