"""Keys, as a running server knows them: looked up in the registry, trusted for half a second (some minutes while the
database is away), watched while in use."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from graft_server.access.lease import Lease
from graft_server.access.principal import ANYONE, LOCAL, Principal
from graft_server.problems import ProblemError
from graft_server.registry import Registry
from graft_server.registry.errors import UnavailableError
from graft_server.registry.keys import digest_of, split
from graft_server.registry.models import now
from graft_server.registry.records import KeyRecord

log = logging.getLogger(__name__)

#: Seconds for which a key that was looked up is not looked up again, and between two looks at those in use.
_FRESH = 0.5
#: Seconds for which a key that was looked up holds while the database does not answer.
_TRUSTED = 300.0
_MOST_KNOWN = 10_000

_UNKNOWN = "this is no key of this server"


class Keyring:
    """See the module. ``local_only`` says that nobody but this machine reaches the server."""

    def __init__(self, registry: Registry, *, local_only: bool = True) -> None:
        self.local_only = local_only
        self._registry = registry
        #: Each key with until when it is not looked up again, and until when it holds while the database is away.
        self._known: dict[str, tuple[float, float, KeyRecord]] = {}
        self._locked = False
        self._looked = float("-inf")
        self._leases: dict[Lease, KeyRecord] = {}
        self._watch: asyncio.Task[None] | None = None

    async def locked(self) -> bool:
        """Whether a key is needed: there is one, or was."""
        if not self._locked and time.monotonic() - self._looked > _FRESH:
            try:
                self._locked = await asyncio.to_thread(self._registry.has_keys)
            except UnavailableError:
                if self._looked == float("-inf"):
                    raise
            self._looked = time.monotonic()
        return self._locked

    def changed(self) -> None:
        """A key was made or revoked here: look again at once."""
        self._known.clear()
        self._looked = float("-inf")

    async def principal(self, authorization: str | None) -> Principal:
        """Whose request it is, by its ``Authorization`` header.

        Raises:
            ProblemError: ``unauthorized``.
        """
        if not await self.locked():
            return LOCAL if self.local_only else ANYONE
        scheme, _, text = (authorization or "").partition(" ")
        if not authorization:
            raise ProblemError("unauthorized", "this server asks for a key; send it as `Authorization: Bearer KEY`")
        parts = split(text.strip()) if scheme.lower() == "bearer" else None
        key = await self._find(parts[0]) if parts is not None else None
        # The same text for what never existed and for a wrong secret.
        if parts is None or key is None or not hmac.compare_digest(key.digest, digest_of(parts[1])):
            log.warning("a request with a key that does not exist was refused")
            raise ProblemError("unauthorized", _UNKNOWN)
        return _holder(key)

    async def holder(self, key_id: str | None) -> Principal:
        """Who asked for something that is done later, by the id of their key; ``None`` is whoever asked without one.

        Raises:
            ProblemError: ``unauthorized``, the key has ended.
        """
        if key_id is None:
            return LOCAL
        return _holder(await self._find(key_id))

    @contextmanager
    def lease(self, principal: Principal) -> Iterator[Lease | None]:
        """For as long as the request goes on, its key is looked at again and again."""
        if principal.key is None:
            yield None
            return
        lease = Lease()
        self._leases[lease] = principal.key
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look_after(), name="keys")
        try:
            yield lease
        finally:
            del self._leases[lease]

    async def _find(self, identity: str) -> KeyRecord | None:
        until, trusted, known = self._known.get(identity, (0.0, 0.0, None))
        if known is not None and time.monotonic() < until:
            return known
        try:
            key = await asyncio.to_thread(self._registry.key, identity)
        except UnavailableError:
            # Whoever used it a moment ago goes on. Not for ever: this server may be the only one that is cut off, and
            # the key be revoked at another one.
            if known is None or time.monotonic() > trusted:
                raise
            self._known[identity] = (time.monotonic() + _FRESH, trusted, known)
            return known
        if key is not None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[identity] = (time.monotonic() + _FRESH, time.monotonic() + _TRUSTED, key)
        return key

    async def _look_after(self) -> None:
        """End the leases of keys that ended. Stops when nothing is in flight."""
        while self._leases:
            await asyncio.sleep(_FRESH)
            for identity in {key.id for key in self._leases.values()}:
                try:
                    key = await self._find(identity)
                except Exception:
                    log.exception("keys can't be looked at; requests in flight go on")
                    break
                reason = _over(key)
                if reason is not None:
                    for lease in [lease for lease, held in self._leases.items() if held.id == identity]:
                        lease.end(reason)


def _holder(key: KeyRecord | None) -> Principal:
    """Raises:
    ProblemError: ``unauthorized``.
    """
    if (reason := _over(key)) is not None:
        raise ProblemError("unauthorized", reason)
    assert key is not None
    return Principal.of(key)


def _over(key: KeyRecord | None) -> str | None:
    """Why a key opens nothing, or nothing any more."""
    if key is None:
        return _UNKNOWN
    if key.revoked_at is not None:
        return f"key {key.id} was revoked; ask for a new one"
    return None if key.valid(now()) else f"key {key.id} has expired; ask for a new one"
