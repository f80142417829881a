"""Retention on a schedule: what ``graft adapters gc`` does by hand, by one server of a registry at a time."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from graft_client.schemas.lifecycle import GcRequest
from graft_server.registry import Registry
from graft_server.serving.cleaner import Cleaner

log = logging.getLogger(__name__)

#: Most seconds between two looks whether it is time.
_LOOK = 60.0


class Retention:
    """Deletes old versions that nothing needs, once in every ``interval``."""

    def __init__(self, registry: Registry, cleaner: Cleaner, *, keep: int, days: float, interval: timedelta) -> None:
        self._registry = registry
        self._cleaner = cleaner
        self._request = GcRequest(keep=keep, older_than_days=days, dry_run=False)
        self._interval = interval

    async def run(self) -> None:
        """Go on until cancelled. What fails is logged and tried again at the next time."""
        while True:
            try:
                if await asyncio.to_thread(self._registry.take_turn, "retention", self._interval):
                    await self._collect()
            except Exception:
                log.exception("old versions could not be deleted")
            await asyncio.sleep(min(_LOOK, self._interval.total_seconds()))

    async def _collect(self) -> None:
        report = await self._cleaner.collect(self._request)
        if report.deleted:
            refs = ", ".join(version.ref for version in report.deleted)
            log.info("retention: deleted %s; %.1f MiB are free again", refs, report.freed_bytes / 2**20)
