"""Bundles: versions with their lineage out of this server and into another one, every hash verified."""

from __future__ import annotations

import asyncio
import hashlib
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, Form, UploadFile
from fastapi.responses import FileResponse
from pydantic import ValidationError

from graft_client.schemas.adapters import VersionInfo
from graft_client.schemas.bundles import MANIFEST, BundledFile, BundleManifest
from graft_server.api.adapter_folder import check_file_name
from graft_server.api.adapters import check_adapter_name, inspect_folder, publish_folder, validate_folder
from graft_server.api.archives import archive_response, pack
from graft_server.api.deps import ServicesDep, require_engine
from graft_server.api.uploads import staged
from graft_server.api.views import version_info
from graft_server.problems import ProblemError
from graft_server.registry.reading import hold
from graft_server.registry.records import Lineage, VersionRecord
from graft_server.registry.stored import StoredFile, manifest_digest
from graft_server.services import Services

router = APIRouter(prefix="/api", tags=["bundles"])

_BLOCK = 1 << 20
_MANIFEST_BYTES = 4 << 20


@router.get("/adapters/{ref}/bundle", response_class=FileResponse)
async def export_bundle(ref: str, services: ServicesDep) -> FileResponse:
    """A version's files with its lineage and the hash of each, as a zip archive that another server takes."""
    version = await asyncio.to_thread(services.registry.resolve, ref)
    with await hold(services.registry, version):
        archive = await asyncio.to_thread(_pack, services, version)
    return archive_response(archive, version, ".graft.zip")


@router.post("/bundles", status_code=201)
async def import_bundle(
    services: ServicesDep, files: Annotated[list[UploadFile], File()], name: Annotated[str | None, Form()] = None
) -> VersionInfo:
    """Publish a bundle of another server as the next version of its adapter, or of `name`, if every hash is right."""
    require_engine(services)
    if len(files) != 1:
        raise ProblemError("invalid-request", "files: send one bundle")
    async with staged(files, services.uploads) as (bundle,):
        folder = bundle.parent / "content"
        folder.mkdir()
        manifest = await asyncio.to_thread(_unpack, bundle, folder)
        origin = manifest.version
        adapter = name or origin.adapter
        await asyncio.to_thread(check_adapter_name, services, adapter, origin.task)
        found = await asyncio.to_thread(inspect_folder, services, origin.task, folder)
        if origin.base_fingerprint != found.base_fingerprint:
            raise ProblemError(
                "invalid-adapter",
                f"{origin.ref} was trained on {origin.base_model} ({origin.base_fingerprint[:12]}), this server runs "
                f"{found.base_model} ({found.base_fingerprint[:12]})",
            )
        await validate_folder(services, adapter, folder, found)
        return await publish_folder(services, adapter, folder, _lineage(origin, found))


def _lineage(origin: VersionInfo, found: Lineage) -> Lineage:
    """The lineage of there, with what the files say here."""
    return replace(
        found,
        plugin=origin.plugin,
        plugin_version=origin.plugin_version,
        dataset=origin.dataset,
        job=origin.job,
        seed=origin.seed,
        options={**origin.options, "origin": f"{origin.ref} {origin.digest}"},
        train_rows=origin.train_rows,
        train_seconds=origin.train_seconds,
        train_tokens=origin.train_tokens,
        evaluation=origin.evaluation,
    )


def _pack(services: Services, version: VersionRecord) -> Path:
    services.registry.verify(version)
    paths = sorted(version.path.iterdir())
    hashed = [_hashed(path) for path in paths]
    manifest = BundleManifest(version=version_info(version), digest=version.digest, files=hashed)
    return pack(paths, services.uploads, documents={MANIFEST: manifest.model_dump_json(indent=2)})


def _hashed(path: Path) -> BundledFile:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return BundledFile(name=path.name, size=stream.tell(), sha256=digest)


def _unpack(bundle: Path, folder: Path) -> BundleManifest:
    """Write the files that the manifest names, and nothing else.

    Raises:
        ProblemError: it is no bundle, or a file is missing, is not named, or is not what its hash says.
    """
    try:
        with zipfile.ZipFile(bundle) as archive:
            for entry in archive.infolist():
                # The others unpack a whole block before anybody can say how much it may be.
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise _bad(f"{entry.filename} is neither stored nor deflated")
            manifest = _manifest(archive)
            named = {file.name for file in manifest.files}
            for other in sorted(set(archive.namelist()) - named - {MANIFEST}):
                raise _bad(f"it holds {other!r}, which {MANIFEST} does not name")
            for file in manifest.files:
                _extract(archive, file, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _bad(f"it is no whole archive ({error})") from error
    files = [StoredFile(file.name, file.size, file.sha256) for file in manifest.files]
    if not manifest_digest(files) == manifest.digest == manifest.version.digest:
        raise _bad(f"the digest in {MANIFEST} is not the one of its files")
    return manifest


def _manifest(archive: zipfile.ZipFile) -> BundleManifest:
    try:
        with archive.open(MANIFEST) as source:
            # Whatever size the archive says it has.
            content = source.read(_MANIFEST_BYTES + 1)
        if len(content) > _MANIFEST_BYTES:
            raise _bad(f"{MANIFEST} is larger than any manifest")
        manifest = BundleManifest.model_validate_json(content)
    except KeyError:
        raise _bad(f"there is no {MANIFEST} in it") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _bad(f"{MANIFEST}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if manifest.format != 1:
        raise _bad(f"{MANIFEST} has format {manifest.format}, this server reads 1: upgrade it")
    names = [file.name for file in manifest.files]
    for name in names:
        check_file_name(name)
        if names.count(name) > 1:
            raise _bad(f"{MANIFEST} names {name} twice")
    return manifest


def _extract(archive: zipfile.ZipFile, file: BundledFile, folder: Path) -> None:
    digest, left = hashlib.sha256(), file.size
    try:
        source = archive.open(file.name)
    except KeyError:
        raise _bad(f"{file.name} is missing") from None
    # Written only as far as the manifest says, however much an entry unpacks to.
    with source, (folder / file.name).open("xb") as target:
        while block := source.read(min(_BLOCK, left + 1)):
            left -= len(block)
            if left < 0:
                raise _bad(f"{file.name} is larger than {MANIFEST} says")
            digest.update(block)
            target.write(block)
    if left or digest.hexdigest() != file.sha256:
        raise _bad(f"{file.name} is not the file that {MANIFEST} has the hash of")


def _bad(reason: str) -> ProblemError:
    return ProblemError("invalid-adapter", f"the bundle can't be used, nothing was published: {reason}")
