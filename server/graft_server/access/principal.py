"""Who sends a request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from graft_client.schemas.keys import SCOPES, Scope
from graft_client.schemas.limits import UNSET
from graft_server.access.lease import Lease
from graft_server.quotas.account import Account, current_account
from graft_server.quotas.ledger import Owner
from graft_server.registry.records import KeyRecord
from graft_server.registry.visibility import Visibility, actor, visible


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of a key, or, on a server without keys, anybody. ``view`` is ``None`` where everything is seen."""

    name: str
    scopes: frozenset[Scope]
    view: Visibility | None = None
    key: KeyRecord | None = None

    @classmethod
    def of(cls, key: KeyRecord) -> Principal:
        """The holder of a key. A tenant owns the adapters whose names begin with its own and a dot."""
        patterns = (*key.adapters, *([f"{key.tenant}.*"] if key.tenant else []))
        view = Visibility(patterns, key.tenant or key.id) if patterns else None
        return cls(f"{key.name} ({key.id})", frozenset(s for s in SCOPES if s in key.scopes), view, key)

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    def account(self) -> Account:
        """On whose account a request of this principal is; without a key that of all callers together."""
        if self.key is None:
            return Account(Owner("key", ""), "a server without keys", UNSET)
        return Account(Owner("key", self.key.id), f"key {self.name}", self.key.limits)

    @contextmanager
    def acting(self, lease: Lease | None) -> Iterator[None]:
        """Everything within is done by, and seen as by, this principal, for as long as ``lease`` holds."""
        by, seen, held = actor.set(self.name), visible.set(self.view), current_lease.set(lease)
        holding = current_key.set(self.key.id if self.key is not None else None)
        counted = current_account.set(self.account())
        try:
            yield
        finally:
            current_account.reset(counted)
            current_key.reset(holding)
            current_lease.reset(held)
            visible.reset(seen)
            actor.reset(by)


#: On a server without keys that listens on loopback only.
LOCAL = Principal("anyone on this machine", frozenset(SCOPES))
#: On a server that listens wider without keys: nobody gets to make the first key over the network.
ANYONE = Principal("anyone", frozenset(SCOPES) - {"admin"})

#: Whether the running request may still go on.
current_lease: ContextVar[Lease | None] = ContextVar("graft_lease", default=None)
#: The id of the key that the running request came with.
current_key: ContextVar[str | None] = ContextVar("graft_key", default=None)
