"""One adapter of several, and the base model with an adapter taken in."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from graft_client.schemas.adapters import VersionInfo
from graft_client.schemas.bundles import MergeRequest
from graft_server.api.adapters import check_adapter_name, inspect_folder, publish_folder, validate_folder
from graft_server.api.archives import archive_response, pack
from graft_server.api.deps import ServicesDep, require_engine
from graft_server.api.streaming import until_disconnect
from graft_server.api.uploads import staging_folder
from graft_server.composition.run import compose
from graft_server.problems import ProblemError
from graft_server.registry.reading import hold
from graft_server.registry.records import VersionRecord
from graft_server.services import Services

router = APIRouter(prefix="/api", tags=["composition"])


@router.post("/merges", status_code=201)
async def merge_adapters(body: MergeRequest, request: Request, services: ServicesDep) -> VersionInfo:
    """Publish one adapter made of several as the next version of `name`, with them in its lineage."""
    require_engine(services)
    return await until_disconnect(request, _merge(services, body))


@router.get("/adapters/{ref}/merged", response_class=FileResponse)
async def export_merged(ref: str, request: Request, services: ServicesDep) -> FileResponse:
    """The base model with an adapter taken into its weights, as a zip archive of a checkpoint for transformers."""
    require_engine(services)
    version = await asyncio.to_thread(services.registry.resolve, ref)
    archive = await until_disconnect(request, _checkpoint(services, version))
    return archive_response(archive, version, "-merged.zip")


async def _merge(services: Services, body: MergeRequest) -> VersionInfo:
    versions = [await asyncio.to_thread(services.registry.resolve, ref) for ref in body.adapters]
    weights = body.weights or [1 / len(versions)] * len(versions)
    _check(versions, weights)
    first = versions[0].lineage
    await asyncio.to_thread(check_adapter_name, services, body.name, first.task)
    async with staging_folder(services.uploads) as folder:
        order = {
            "kind": "merge",
            "folders": [str(version.path) for version in versions],
            "weights": weights,
            "target": str(folder),
            "method": body.method,
            "density": body.density,
            "seed": body.seed,
        }
        with await hold(services.registry, *versions):
            await compose(order)
        found = await asyncio.to_thread(inspect_folder, services, first.task, folder)
        await validate_folder(services, body.name, folder, found)
        options = {
            "merged_from": [version.ref for version in versions],
            "merged_digests": [version.digest for version in versions],
            "merge_method": body.method,
            "merge_weights": weights,
            **({"merge_density": body.density} if body.method in ("ties", "dare") else {}),
        }
        seed = body.seed if body.method == "dare" else None
        lineage = replace(found, options=options, seed=seed)
        return await publish_folder(services, body.name, folder, lineage)


def _check(versions: list[VersionRecord], weights: list[float]) -> None:
    if len(weights) != len(versions):
        raise ProblemError("invalid-request", f"{len(versions)} adapters and {len(weights)} weights: give one each")
    if not all(0 < weight < float("inf") for weight in weights):
        raise ProblemError("invalid-request", "weights: each must be more than 0")
    first = versions[0]
    for other in versions[1:]:
        if other.lineage.base_fingerprint != first.lineage.base_fingerprint:
            bases = f"{first.lineage.base_model} and {other.lineage.base_model}"
            raise ProblemError("conflict", f"{first.ref} and {other.ref} are for different base models ({bases})")
        if other.lineage.task != first.lineage.task:
            tasks = f"{first.lineage.task!r} and {other.lineage.task!r}"
            raise ProblemError("conflict", f"{first.ref} and {other.ref} serve different tasks ({tasks})")


async def _checkpoint(services: Services, version: VersionRecord) -> Path:
    model = services.engine.model
    if version.lineage.base_fingerprint != model.fingerprint:
        raise ProblemError(
            "conflict", f"{version.ref} is for {version.lineage.base_model}, this server has {model.name}"
        )
    async with staging_folder(services.uploads) as folder:
        order = {"kind": "merged", "base": model.path, "adapter": str(version.path), "target": str(folder)}
        with await hold(services.registry, version):
            await compose(order)
        return await asyncio.to_thread(pack, sorted(folder.iterdir()), services.uploads, consume=True)
