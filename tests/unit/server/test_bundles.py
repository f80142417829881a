"""Bundles over HTTP: the lineage comes along, and whatever is cut, changed or added is refused."""

from __future__ import annotations

import io
import json
import resource
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from graft_server.services import Services
from support.scripted_engine import ScriptedEngine
from support.serving import in_memory, make_services, publish

Files = dict[str, bytes]


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Another server with the same base model."""
    (tmp_path / "other").mkdir()
    services = make_services(tmp_path / "other")
    async with in_memory(services) as client:
        yield client
    services.registry.close()


async def bundle(client: httpx.AsyncClient, ref: str = "de@1") -> bytes:
    response = await client.get(f"/api/adapters/{ref}/bundle")
    assert response.status_code == 200, response.text
    return response.content


async def send(client: httpx.AsyncClient, content: bytes, name: str | None = None) -> httpx.Response:
    data = {"name": name} if name else {}
    return await client.post("/api/bundles", data=data, files=[("files", ("b.zip", content))])


def changed(content: bytes, change: Callable[[Files], Any]) -> bytes:
    """The same archive with other files."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


async def test_a_version_moves_with_its_lineage(
    client: httpx.AsyncClient, services: Services, other: httpx.AsyncClient, tmp_path: Path
) -> None:
    here = publish(services, tmp_path, "de", state={"source_language": "English"})
    response = await send(other, await bundle(client))
    assert response.status_code == 201, response.text
    there = response.json()
    assert (there["ref"], there["digest"], there["task"]) == ("de@1", here.digest, "translation")
    assert there["plugin"] == "graft_plugins"
    assert there["options"] == {"origin": f"de@1 {here.digest}"}
    answer = await other.post("/api/predict", json={"adapter": "de", "text": "x"})
    assert answer.json()["adapter"] == "de@1"
    assert (await send(other, await bundle(client), name="fr")).json()["ref"] == "fr@1"
    assert (await send(other, await bundle(client))).json()["ref"] == "de@2"


def _edit(**fields: Any) -> Callable[[Files], Any]:
    """Change fields of the manifest."""

    def change(files: Files) -> None:
        files["bundle.json"] = json.dumps({**json.loads(files["bundle.json"]), **fields}).encode()

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda files: files.update({"adapter_model.safetensors": b"x" * 47}), "adapter_model.safetensors is"),
        (lambda files: files.pop("adapter_config.json"), "adapter_config.json is missing"),
        (lambda files: files.pop("bundle.json"), "there is no bundle.json"),
        (lambda files: files.update({"../evil": b"x"}), "'../evil', which bundle.json does not name"),
        (lambda files: files.update({"bundle.json": b"{"}), "bundle.json"),
        (_edit(digest="0" * 64), "the digest in bundle.json"),
        (_edit(format=2), "has format 2"),
        (_edit(files=[]), "at least 1"),
        (_edit(files=[{"name": "../x", "size": 1, "sha256": "0" * 64}]), "../x"),
        (_edit(files=[{"name": "adapter_model.bin", "size": 1, "sha256": "0" * 64}]), "pickled"),
    ],
)
async def test_a_tampered_bundle_is_refused(
    client: httpx.AsyncClient,
    services: Services,
    other: httpx.AsyncClient,
    tmp_path: Path,
    change: Callable[[Files], Any],
    told: str,
) -> None:
    publish(services, tmp_path, "de")
    response = await send(other, changed(await bundle(client), change))
    assert (response.status_code, response.json()["code"]) == (422, "invalid-adapter"), response.text
    assert told in response.json()["detail"]
    assert (await other.get("/api/adapters")).json() == []
    assert not list((tmp_path / "other" / "data" / "uploads").iterdir())


async def test_a_truncated_bundle_is_refused(
    client: httpx.AsyncClient, services: Services, other: httpx.AsyncClient, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de")
    whole = await bundle(client)
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        response = await send(other, whole[:length])
        assert (response.status_code, response.json()["code"]) == (422, "invalid-adapter"), length
    # One bit, somewhere in the weights.
    where = whole.index(b"__metadata__")
    flipped = whole[:where] + bytes([whole[where] ^ 1]) + whole[where + 1 :]
    response = await send(other, flipped)
    assert (response.status_code, response.json()["code"]) == (422, "invalid-adapter")
    assert (await other.get("/api/adapters")).json() == []


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
async def test_an_archive_that_says_less_than_it_unpacks_to_takes_no_memory(
    client: httpx.AsyncClient, other: httpx.AsyncClient, method: int
) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("bundle.json", b" " * (200 << 20))
    # Sizes are the sender's word.
    small = stream.getvalue().replace((200 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    response = await send(other, small)
    assert (response.status_code, response.json()["code"]) == (422, "invalid-adapter")
    assert "neither stored nor deflated" in response.json()["detail"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


async def test_an_archive_that_cant_be_inflated_is_refused(other: httpx.AsyncClient) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bundle.json", bytes(range(256)) * 40)
    content = bytearray(stream.getvalue())
    content[45:65] = b"\xff" * 20
    response = await send(other, bytes(content))
    assert (response.status_code, response.json()["code"]) == (422, "invalid-adapter")


async def test_a_bundle_for_another_base_model_is_refused(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de")
    engine = ScriptedEngine()
    engine.model = msgspec.structs.replace(engine.model, fingerprint="e" * 64)
    (tmp_path / "third").mkdir()
    third = make_services(tmp_path / "third", engine)
    async with in_memory(third) as other:
        response = await send(other, await bundle(client))
        assert (response.status_code, response.json()["code"]) == (422, "invalid-adapter")
        assert "was trained on tiny (ffffffffffff), this server runs tiny (eeeeeeeeeeee)" in response.json()["detail"]
    third.registry.close()


async def test_a_damaged_version_is_not_sent(client: httpx.AsyncClient, services: Services, tmp_path: Path) -> None:
    version = publish(services, tmp_path, "de")
    (version.path / "adapter_model.safetensors").write_bytes(b"x")
    response = await client.get("/api/adapters/de/bundle")
    assert (response.status_code, response.json()["code"]) == (500, "adapter-unloadable")
