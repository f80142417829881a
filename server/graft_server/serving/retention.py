"""Retention on a schedule, by one server of a registry at a time: of old versions, as ``graft adapters gc`` does it by
hand, and of the responses that callers have had kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from graft_client.schemas.lifecycle import GcRequest
from graft_server.registry import Registry
from graft_server.serving.cleaner import Cleaner

log = logging.getLogger(__name__)

#: Most seconds between two looks whether it is time.
_LOOK = 60.0
#: Responses removed in one transaction; other writers have their turn between two of them.
_RESPONSES = 500


class Retention:
    """Deletes old versions that nothing needs, once in every ``interval``."""

    def __init__(self, registry: Registry, cleaner: Cleaner, *, keep: int, days: float, interval: timedelta) -> None:
        self._registry = registry
        self._cleaner = cleaner
        self._request = GcRequest(keep=keep, older_than_days=days, dry_run=False)
        self._interval = interval

    async def run(self) -> None:
        """Go on until cancelled."""
        await _in_turns(self._registry, "retention", self._interval, self._collect, "old versions")

    async def _collect(self) -> None:
        report = await self._cleaner.collect(self._request)
        if report.deleted:
            refs = ", ".join(version.ref for version in report.deleted)
            log.info("retention: deleted %s; %.1f MiB are free again", refs, report.freed_bytes / 2**20)


class ResponseRetention:
    """Deletes kept responses that are older than ``age``, once in every ``interval``."""

    def __init__(self, registry: Registry, *, age: timedelta, interval: timedelta) -> None:
        self._registry = registry
        self._age = age
        self._interval = interval

    async def run(self) -> None:
        """Go on until cancelled."""
        await _in_turns(self._registry, "response-retention", self._interval, self._remove, "old responses")

    async def _remove(self) -> None:
        removed = 0
        while True:
            some = await asyncio.to_thread(self._registry.documents.remove_old, "response", self._age, limit=_RESPONSES)
            removed += some
            if some < _RESPONSES:
                break
        if removed:
            log.info("retention: deleted %d kept responses", removed)


async def _in_turns(
    registry: Registry, name: str, interval: timedelta, work: Callable[[], Awaitable[None]], what: str
) -> None:
    """Do ``work`` once in every ``interval``, whichever server's turn it is. What fails is logged and tried again
    at the next time."""
    while True:
        try:
            if await asyncio.to_thread(registry.take_turn, name, interval):
                await work()
        except Exception:
            log.exception("%s could not be deleted", what)
        await asyncio.sleep(min(_LOOK, interval.total_seconds()))
