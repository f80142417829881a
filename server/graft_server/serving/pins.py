"""Pinned versions: the registry says which, the engine keeps them in their slots, the gate leaves them room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from weakref import WeakValueDictionary

from graft_server.admission.turnstile import Turnstile
from graft_server.engine.base import UP, Engine, EngineError, InvalidRequestError
from graft_server.problems import ProblemError
from graft_server.registry import Registry, RegistryError
from graft_server.registry.reading import hold
from graft_server.registry.records import VersionRecord
from graft_server.serving.convert import version_source

log = logging.getLogger(__name__)


class Pins:
    """Pins and unpins versions, and forgets deleted ones; of each version one of these at a time."""

    def __init__(self, registry: Registry, engine: Engine, turnstile: Turnstile) -> None:
        self._registry = registry
        self._engine = engine
        self._turnstile = turnstile
        #: What engine and gate have been told to keep, by engine id, and the hold on its files.
        self._kept: dict[int, tuple[VersionRecord, ExitStack]] = {}
        self._failures: dict[str, str] = {}
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    @property
    def failures(self) -> Mapping[str, str]:
        """Why pinned versions are not in a slot, by ``name@N``."""
        return self._failures

    async def restore(self) -> None:
        """Pin in the engine what the registry says is pinned, by whichever server, and let go what is pinned no more.
        What fails is logged and kept in ``failures``; it is not tried again while it stays pinned."""
        pinned = {version.engine_id: version for version in await asyncio.to_thread(self._registry.pinned_versions)}
        refs = {version.ref for version in pinned.values()}
        self._failures = {ref: reason for ref, reason in self._failures.items() if ref in refs}
        for version in [kept for kept, _ in self._kept.values() if kept.engine_id not in pinned]:
            async with self._lock(version):
                if not await self._is_pinned(version):
                    await self._let_go(version)
        for version in pinned.values():
            if version.engine_id not in self._kept and version.ref not in self._failures:
                await self._restore(version)

    async def _restore(self, version: VersionRecord) -> None:
        async with self._lock(version):
            if not await self._is_pinned(version):
                return  # it was unpinned or deleted while others were loaded
            try:
                await self._keep(version)
            except (EngineError, ProblemError, RegistryError) as error:
                await self._let_go(version)
                log.warning("the pinned version %s could not be loaded: %s", version.ref, error)
                self._failures[version.ref] = str(error)

    async def _is_pinned(self, version: VersionRecord) -> bool:
        pinned = await asyncio.to_thread(self._registry.pinned_versions)
        return version.engine_id in {other.engine_id for other in pinned}

    async def pin(self, name: str, number: int) -> VersionRecord:
        """Load a version and keep it in its slot, now and after a restart. One that is pinned already is tried again.

        Raises:
            UnknownError: there is no such version.
            ProblemError: ``conflict``, where all slots but one are pinned.
            EngineError: its files can't be loaded, or there is no engine.
        """
        version = await asyncio.to_thread(self._registry.version, name, number)
        async with self._lock(version):
            known = version.engine_id in self._kept
            try:
                await self._keep(version)
                return await asyncio.to_thread(self._registry.pin, name, number)
            except BaseException:
                if not known:
                    await self._let_go(version)
                raise

    async def unpin(self, name: str, number: int) -> VersionRecord:
        """Let a version leave its slot when others need it.

        Raises:
            UnknownError: there is no such version.
        """
        version = await asyncio.to_thread(self._registry.version, name, number)
        async with self._lock(version):
            unpinned = await asyncio.to_thread(self._registry.unpin, name, number)
            self._failures.pop(version.ref, None)
            await self._let_go(version)
            return unpinned

    async def forget(self, version: VersionRecord) -> None:
        """A version was deleted, pinned or not: it leaves the engine."""
        async with self._lock(version):
            self._failures.pop(version.ref, None)
            await self._let_go(version)
            # An engine that is not up holds no adapter.
            if self._engine.state in UP:
                await self._engine.unload(version.engine_id)

    def _lock(self, version: VersionRecord) -> asyncio.Lock:
        return self._locks.setdefault(version.engine_id, asyncio.Lock())

    async def _keep(self, version: VersionRecord) -> None:
        # An engine that is rebuilt reads the files again.
        if version.engine_id not in self._kept:
            self._kept[version.engine_id] = (version, await hold(self._registry, version))
        # Before the engine is asked, which may have to wait for a slot: the gate has busy adapters give theirs up.
        self._turnstile.pin(version.engine_id)
        try:
            await self._engine.pin(version_source(version))
        except InvalidRequestError as error:
            raise ProblemError("conflict", str(error)) from error
        self._failures.pop(version.ref, None)

    async def _let_go(self, version: VersionRecord) -> None:
        if kept := self._kept.pop(version.engine_id, None):
            kept[1].close()
        self._turnstile.unpin(version.engine_id)
        await self._engine.unpin(version.engine_id)
