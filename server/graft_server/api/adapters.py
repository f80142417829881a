"""Adapters and their versions: listing, registering what was trained elsewhere, exporting, pinning, deleting."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, Form, Response, UploadFile
from fastapi.responses import FileResponse

from graft_client.schemas.adapters import AdapterInfo, VersionInfo
from graft_client.schemas.limits import LimitsChange
from graft_server.api.adapter_folder import check_file_name, read_adapter_folder
from graft_server.api.archives import archive_response, pack
from graft_server.api.deps import ServicesDep, require_engine
from graft_server.api.profiles import write_profile
from graft_server.api.removal import remove_adapter, remove_version
from graft_server.api.uploads import staged
from graft_server.api.views import adapter_info, version_info
from graft_server.engine.base import AdapterLoadError
from graft_server.problems import ProblemError
from graft_server.registry.adapters import check_name
from graft_server.registry.reading import hold
from graft_server.registry.records import Lineage
from graft_server.services import Services
from graft_server.serving.evaluator import unpublished_source

router = APIRouter(prefix="/api/adapters", tags=["adapters"])


@router.get("")
async def list_adapters(services: ServicesDep, task: str | None = None) -> list[AdapterInfo]:
    """Every adapter with its versions; of one task with `task`."""
    if task is not None:
        services.host.task(task)
    return [adapter_info(record) for record in await asyncio.to_thread(services.registry.adapters, task)]


@router.post("", status_code=201)
async def register_adapter(
    services: ServicesDep,
    name: Annotated[str, Form()],
    task: Annotated[str, Form()],
    files: Annotated[list[UploadFile], File()],
    profile: Annotated[list[UploadFile] | None, File()] = None,
) -> VersionInfo:
    """Publish an adapter folder as the next version of ``name``, once the engine has read it and it fits.

    The rows of ``profile`` tell `auto` what it is for; they are not kept.
    """
    require_engine(services)
    await asyncio.to_thread(check_adapter_name, services, name, task)
    async with (
        staged(files, services.uploads, check_file_name) as paths,
        staged(profile or [], services.uploads) as rows,
    ):
        folder = paths[0].parent
        lineage = await asyncio.to_thread(inspect_folder, services, task, folder)
        if rows:
            await asyncio.to_thread(write_profile, services, task, folder, rows)
        await validate_folder(services, name, folder, lineage)
        return await publish_folder(services, name, folder, lineage)


@router.get("/{name}")
async def show_adapter(name: str, services: ServicesDep) -> AdapterInfo:
    """One adapter with its versions."""
    return adapter_info(await asyncio.to_thread(services.registry.adapter, name))


@router.delete("/{name}", status_code=204)
async def delete_adapter(name: str, services: ServicesDep) -> Response:
    """Delete an adapter with all its versions."""
    await remove_adapter(services, name)
    return Response(status_code=204)


@router.post("/{name}/limits")
async def limit_adapter(name: str, body: LimitsChange, services: ServicesDep) -> AdapterInfo:
    """Change how much an adapter may be asked, by all keys together. What is in flight goes on."""
    record = await asyncio.to_thread(services.registry.limit_adapter, name, body)
    services.meter.changed()
    return adapter_info(record)


@router.get("/{name}/versions/{which}")
async def show_version(name: str, which: str, services: ServicesDep) -> VersionInfo:
    """One version, by its number or an alias, with its lineage and metrics."""
    return version_info(await asyncio.to_thread(services.registry.resolve, f"{name}@{which}"))


@router.delete("/{name}/versions/{number}", status_code=204)
async def delete_version(name: str, number: int, services: ServicesDep) -> Response:
    """Delete one version of an adapter."""
    await remove_version(services, name, number)
    return Response(status_code=204)


@router.post("/{name}/versions/{number}/pin")
async def pin_version(name: str, number: int, services: ServicesDep) -> VersionInfo:
    """Load a version and keep it in its slot, also after a restart. All slots but one can be pinned."""
    require_engine(services)
    return version_info(await services.pins.pin(name, number))


@router.delete("/{name}/versions/{number}/pin")
async def unpin_version(name: str, number: int, services: ServicesDep) -> VersionInfo:
    """Let a version leave its slot again when others need it."""
    return version_info(await services.pins.unpin(name, number))


@router.get("/{ref}/archive", response_class=FileResponse)
async def export_adapter(ref: str, services: ServicesDep) -> FileResponse:
    """A version's files as a zip archive."""
    version = await asyncio.to_thread(services.registry.resolve, ref)
    with await hold(services.registry, version):
        archive = await asyncio.to_thread(pack, sorted(version.path.iterdir()), services.uploads)
    return archive_response(archive, version, ".zip")


def check_adapter_name(services: Services, name: str, task: str) -> None:
    """Whether an adapter of this task may take this name: a new one, or one that serves the task already.

    Raises:
        UnknownNameError: there is no such task.
        InvalidNameError: no adapter can be called so.
        ConflictError: the adapter serves another task, or a route has the name.
    """
    services.host.task(task)
    check_name(name)
    services.registry.check_free(name, task)


def inspect_folder(services: Services, task_name: str, folder: Path) -> Lineage:
    """What the files say about themselves, as far as this process can check it. Blocking.

    Raises:
        ProblemError: ``invalid-adapter`` or ``unservable``.
    """
    found = read_adapter_folder(
        folder, services.host.task(task_name), services.host.methods, services.engine.model.fingerprint
    )
    capabilities = services.engine.capabilities
    if found.method not in capabilities.methods:
        hint = capabilities.otherwise and f"; {capabilities.otherwise}"
        detail = f"adapter_config.json: the {capabilities.engine} engine can't serve {found.method!r}{hint}"
        raise ProblemError("unservable", detail)
    if found.rank > capabilities.max_rank:
        detail = (
            f"adapter_config.json: rank {found.rank} is more than this server serves "
            f"({capabilities.max_rank}, `max_rank`)"
        )
        raise ProblemError("unservable", detail)
    provider = services.host.provider("task", task_name)
    return Lineage(
        task=task_name,
        method=found.method,
        base_model=services.engine.model.name,
        base_fingerprint=services.engine.model.fingerprint,
        rank=found.rank,
        plugin=provider.name,
        plugin_version=provider.version,
    )


async def validate_folder(services: Services, name: str, folder: Path, lineage: Lineage) -> None:
    """Let the engine read an adapter folder.

    Raises:
        ProblemError: ``invalid-adapter``.
    """
    source = unpublished_source(ref=name, path=str(folder), method=lineage.method, rank=lineage.rank)
    try:
        await services.engine.validate(source)
    except AdapterLoadError as error:
        raise ProblemError("invalid-adapter", str(error)) from error


async def publish_folder(services: Services, name: str, folder: Path, lineage: Lineage) -> VersionInfo:
    """Publish a folder that was checked as the next version of an adapter, and tell the plugins."""
    info = version_info(await asyncio.to_thread(services.registry.publish, name, folder, lineage))
    services.observers.tell("version_published", info.model_dump(mode="json"))
    return info
