"""Retention: which old versions may go, and their deletion. What is aliased, routed, pinned or in flight stays."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from graft_client.schemas.lifecycle import GcReport, GcRequest, GcVersion
from graft_server.problems import ProblemError
from graft_server.registry import ConflictError, Registry, RegistryError, UnknownError
from graft_server.registry.models import now
from graft_server.registry.records import VersionRecord
from graft_server.serving.pins import Pins
from graft_server.serving.traffic import Traffic

log = logging.getLogger(__name__)


class Cleaner:
    """Deletes versions that nothing needs."""

    def __init__(self, registry: Registry, pins: Pins, traffic: Traffic) -> None:
        self._registry = registry
        self._pins = pins
        self._traffic = traffic

    def refuse_in_flight(self, version: VersionRecord) -> None:
        """Raises:
        ProblemError: ``conflict``, where requests for the version are not over.
        """
        if count := self._traffic.in_flight(version.ref):
            requests = "a request is" if count == 1 else f"{count} requests are"
            raise ProblemError("conflict", f"{requests} in flight for {version.ref}; try again when they are over")

    async def collect(self, request: GcRequest) -> GcReport:
        """Delete what may go, or with ``dry_run`` only say what that is.

        A version that somebody took into use between the look and the deletion stays, and is told as kept.

        Raises:
            UnknownError: there is no such adapter.
        """
        kept: list[GcVersion] = []
        deleted: list[VersionRecord] = []
        reasons = await asyncio.to_thread(self._reasons)
        for version in await asyncio.to_thread(self._old, request):
            reason = reasons.get(version.engine_id) or self._busy(version)
            if reason is None and not request.dry_run:
                reason = await self._delete(version)
            if reason is None:
                deleted.append(version)
            else:
                kept.append(_told(version, reason))
        orphans = await asyncio.to_thread(self._registry.collect_garbage, dry_run=request.dry_run)
        orphans += await self.collect_objects(dry_run=request.dry_run)
        return GcReport(
            dry_run=request.dry_run,
            deleted=[_told(version) for version in deleted],
            kept=kept,
            freed_bytes=await asyncio.to_thread(self._freed, deleted),
            orphans=len(orphans),
        )

    async def collect_objects(self, *, dry_run: bool = False) -> list[Path]:
        """Remove from the object store what killed servers left there, if it answers; returns it."""
        try:
            return await asyncio.to_thread(self._registry.collect_objects, dry_run=dry_run)
        except RegistryError as error:
            log.warning("the object store was not looked through for garbage: %s", error)
            return []

    def _old(self, request: GcRequest) -> list[VersionRecord]:
        registry = self._registry
        adapters = [registry.adapter(request.adapter)] if request.adapter else registry.adapters()
        before = now() - timedelta(days=request.older_than_days)
        old = [version for adapter in adapters for version in adapter.versions[: -request.keep]]
        return [version for version in old if version.created_at <= before]

    def _reasons(self) -> dict[int, str]:
        """Why versions must stay, by engine id."""
        pinned = {version.engine_id: "is pinned" for version in self._registry.pinned_versions()}
        elsewhere = self._registry.in_flight_elsewhere()
        busy = {
            version.engine_id: "has requests in flight on another server"
            for adapter in (self._registry.adapters() if elsewhere else ())
            for version in adapter.versions
            if version.ref in elsewhere
        }
        return busy | pinned | self._registry.routes.in_use() | self._registry.aliases.in_use()

    def _busy(self, version: VersionRecord) -> str | None:
        return "has requests in flight" if self._traffic.in_flight(version.ref) else None

    async def _delete(self, version: VersionRecord) -> str | None:
        """Why it could not be deleted, or ``None``."""
        try:
            await asyncio.to_thread(self._registry.delete_version, version.adapter, version.version, unless_pinned=True)
        except ConflictError as error:
            return str(error)
        except UnknownError:
            return None  # somebody else was faster
        await self._pins.forget(version)
        log.info("deleted %s, which nothing needed any more", version.ref)
        return None

    def _freed(self, deleted: Iterable[VersionRecord]) -> int:
        """Bytes of artefacts that no version but the deleted ones refers to."""
        gone = {version.engine_id: version for version in deleted}
        others = Counter(
            version.digest
            for adapter in self._registry.adapters()
            for version in adapter.versions
            if version.engine_id not in gone
        )
        sizes = {version.digest: version.size_bytes for version in gone.values()}
        return sum(size for digest, size in sizes.items() if not others[digest])


def _told(version: VersionRecord, reason: str | None = None) -> GcVersion:
    return GcVersion(ref=version.ref, size_bytes=version.size_bytes, created_at=version.created_at, kept_because=reason)
