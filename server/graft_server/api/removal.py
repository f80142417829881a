"""Adapters and versions that go, with all that is asked before: for the native API and the OpenAI-shaped one."""

from __future__ import annotations

import asyncio

from graft_client.schemas.jobs import JobState
from graft_server.problems import ProblemError
from graft_server.services import Services


async def remove_adapter(services: Services, name: str) -> None:
    """Delete an adapter with all its versions.

    Raises:
        UnknownError: there is none.
        ProblemError: ``conflict``, a job trains it or a request is in flight.
        ConflictError: an alias stands for a version, or a route needs one.
    """
    versions = (await asyncio.to_thread(services.registry.adapter, name)).versions
    await asyncio.to_thread(_refuse_while_training, services, name)
    for version in versions:
        services.cleaner.refuse_in_flight(version)
    await asyncio.to_thread(services.registry.delete_adapter, name)
    for version in versions:
        await services.pins.forget(version)


async def remove_version(services: Services, name: str, number: int) -> None:
    """Delete one version.

    Raises:
        UnknownError: there is none.
        ProblemError, ConflictError: as for the whole adapter.
    """
    version = await asyncio.to_thread(services.registry.version, name, number)
    await asyncio.to_thread(_refuse_while_training, services, name)
    services.cleaner.refuse_in_flight(version)
    await asyncio.to_thread(services.registry.delete_version, name, number)
    await services.pins.forget(version)


def _refuse_while_training(services: Services, name: str) -> None:
    for state in (JobState.queued, JobState.running, JobState.evaluating):
        for job in services.registry.jobs(state=state, limit=1000):
            if job.adapter == name:
                detail = f"job {job.id} is still training {name!r}; cancel it or wait for it"
                raise ProblemError("conflict", detail)
