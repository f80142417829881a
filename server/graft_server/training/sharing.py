"""Has a job's newest checkpoint where another server finds it, while the training goes on."""

from __future__ import annotations

import asyncio
import logging

from graft_server.registry.errors import LostClaimError, RegistryError
from graft_server.registry.records import JobRecord
from graft_server.registry.registry import Registry
from graft_server.training.spec import CHECKPOINT_FOLDER, CHECKPOINT_NAME

log = logging.getLogger(__name__)


class CheckpointSharing:
    """Sends the checkpoints of one job at work to the shared store, one at a time. What became old meanwhile is left
    out: a slow store neither delays the training nor piles anything up."""

    def __init__(self, registry: Registry, job: JobRecord) -> None:
        self._registry = registry
        self._job = job
        self._newest: int | None = None
        self._task: asyncio.Task[None] | None = None

    def share(self, step: int) -> None:
        """The checkpoint of a step lies in the job's folder."""
        self._newest = step
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work(), name=f"checkpoints-{self._job.id}")

    async def flush(self) -> None:
        """Wait until the newest one is in the store, or can't be sent."""
        if self._task is not None:
            await self._task

    async def _work(self) -> None:
        while self._newest is not None:
            step, self._newest = self._newest, None
            folder = self._job.folder / CHECKPOINT_FOLDER / CHECKPOINT_NAME.format(step)
            try:
                await asyncio.to_thread(self._registry.checkpoints.keep, self._job, folder)
            except LostClaimError as error:
                log.warning("%s; its checkpoint of step %d is not shared", error, step)
            except (RegistryError, OSError) as error:
                # The training loses nothing by it, and the next one may come through.
                log.warning("job %s: the checkpoint of step %d can't be shared: %s", self._job.id, step, error)
