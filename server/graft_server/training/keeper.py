"""Keeps the claims of the jobs at work on this server, and notices when one is lost or its job is to be cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from graft_server.registry.records import Claim, JobRecord
from graft_server.registry.registry import Registry

log = logging.getLogger(__name__)

#: Seconds until a database that did not answer is asked again.
_PAUSE = 1.0


class ClaimKeeper:
    """Renews claims three times in each ``lease`` (in seconds). ``lost`` and ``cancelled`` are called in the event
    loop, the second one each time that it is found again."""

    def __init__(
        self, registry: Registry, lease: float, *, lost: Callable[[str], None], cancelled: Callable[[str], None]
    ) -> None:
        self._registry = registry
        self._lease = lease
        self._lost = lost
        self._cancelled = cancelled
        self._claims: dict[str, Claim] = {}
        self._woken = asyncio.Event()

    def add(self, claim: Claim) -> None:
        """A job was claimed."""
        self._claims[claim.job] = claim

    def drop(self, claim: Claim) -> None:
        """Its run is over, whether or not the claim is the job's last."""
        if self._claims.get(claim.job) == claim:
            del self._claims[claim.job]

    def wake(self) -> None:
        """Look at the claims now: something was changed in the registry."""
        self._woken.set()

    async def run(self) -> None:
        """Go on until cancelled."""
        pause = self._lease / 3
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause)
            self._woken.clear()
            pause = self._lease / 3
            if not self._claims:
                continue
            try:
                await self._renew(list(self._claims.values()))
            except Exception as error:  # whatever it is, the next try may work
                pause = min(_PAUSE, pause)
                log.warning("the claims of jobs can't be renewed: %s", error)

    async def _renew(self, claims: list[Claim]) -> None:
        jobs = await asyncio.to_thread(self._registry.renew_claims, claims, lease=self._lease)
        held: dict[str, JobRecord] = {job.id: job for job in jobs}
        for claim in claims:
            if self._claims.get(claim.job) != claim:
                continue  # its run ended meanwhile
            if claim.job not in held:
                self._lost(claim.job)
            elif held[claim.job].cancel_requested:
                self._cancelled(claim.job)
