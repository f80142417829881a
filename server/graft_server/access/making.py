"""A key made from what was asked for, over HTTP or at the command line."""

from __future__ import annotations

from graft_client.schemas.keys import KeyCreate, NewKey
from graft_client.schemas.limits import UNSET
from graft_server.access.views import key_info
from graft_server.registry import Registry


def make_key(registry: Registry, body: KeyCreate) -> NewKey:
    """Blocking.

    Raises:
        RegistryError: the registry refuses the key, or can't be reached.
    """
    record, secret = registry.create_key(
        body.name,
        body.scopes,
        adapters=body.adapters,
        tenant=body.tenant,
        expires_at=body.expires_at,
        limits=body.limits.applied(UNSET),
    )
    return NewKey(**key_info(record).model_dump(), key=secret)
