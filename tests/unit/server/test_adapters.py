"""Adapters over HTTP: registering a folder, listing, exporting and deleting."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import httpx
import pytest

from graft_server.services import Services
from support.scripted_engine import FINGERPRINT
from support.serving import ExtraPlugin, adapter_files, engine_of, in_memory, make_services, parts, publish


async def register(
    client: httpx.AsyncClient, files: dict[str, bytes], name: str = "de", task: str = "translation"
) -> httpx.Response:
    return await client.post("/api/adapters", data={"name": name, "task": task}, files=parts(files))


async def test_a_folder_becomes_a_version_with_its_lineage(client: httpx.AsyncClient, services: Services) -> None:
    response = await register(client, adapter_files())
    assert response.status_code == 201, response.text
    version = response.json()
    assert (version["ref"], version["task"], version["method"]) == ("de@1", "translation", "lora")
    assert version["base_fingerprint"] == FINGERPRINT
    assert version["plugin"] == "graft_plugins.tasks.translation"
    [checked] = engine_of(services).validated
    assert checked.engine_id >= 2**31, "the check must not use an id that a published version has"
    assert (await client.get("/api/adapters/de")).json()["latest"] == 1
    assert (await client.get("/api/adapters/de/versions/1")).json() == version
    assert [each["name"] for each in (await client.get("/api/adapters?task=translation")).json()] == ["de"]
    assert (await client.get("/api/adapters?task=chat")).json() == []
    answer = await client.post("/api/predict", json={"adapter": "de", "text": "x"})
    assert answer.json()["adapter"] == "de@1"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"adapter_model.bin": b"x"}, "pickled"),
        ({"weights.pt": b"x"}, "pickled"),
        ({"run.py": b"x"}, "nothing else"),
        ({"adapter_config.json": b"{"}, "not JSON"),
        ({"adapter_config.json": b"[]"}, "JSON object"),
        ({"adapter_config.json": b'{"peft_type": "IA3"}'}, "adapter_config.json"),
        ({"adapter_config.json": None}, "adapter_config.json is missing"),
        ({"adapter_model.safetensors": None}, "adapter_model.safetensors is missing"),
        ({"task_state.json": b'{"source_language": 1}'}, "task_state.json:source_language"),
        ({"graft.json": json.dumps({"base_fingerprint": "0" * 64}).encode()}, "another base model"),
    ],
)
async def test_a_folder_that_can_not_be_used_is_refused_with_its_place(
    client: httpx.AsyncClient, services: Services, change: dict[str, bytes | None], part: str
) -> None:
    files = {name: content for name, content in {**adapter_files(), **change}.items() if content is not None}
    response = await register(client, files)
    assert (response.status_code, response.json()["code"]) == (422, "invalid-adapter"), response.text
    assert part in response.json()["detail"]
    assert services.registry.adapters() == []
    assert not services.uploads.exists() or list(services.uploads.iterdir()) == []


async def test_what_the_engine_refuses_is_not_published(client: httpx.AsyncClient, services: Services) -> None:
    engine_of(services).unloadable = "adapter_model.safetensors: tensor lora_A has NaNs"
    response = await register(client, adapter_files())
    assert (response.status_code, response.json()["code"]) == (422, "invalid-adapter")
    assert response.json()["detail"] == "adapter_model.safetensors: tensor lora_A has NaNs"
    assert services.registry.adapters() == []


async def test_a_rank_or_a_method_the_engine_does_not_serve(client: httpx.AsyncClient) -> None:
    config = json.loads(adapter_files()["adapter_config.json"])
    for change, part in [({"r": 64}, "rank 64 is more than this server serves (32"), ({"use_dora": True}, "'dora'")]:
        files = {**adapter_files(), "adapter_config.json": json.dumps({**config, **change}).encode()}
        response = await register(client, files)
        assert (response.status_code, response.json()["code"]) == (422, "unservable")
        assert part in response.json()["detail"]


@pytest.mark.parametrize("name", ["base", "auto", "Über", "a b", "x" * 65])
async def test_a_name_no_adapter_can_have(client: httpx.AsyncClient, name: str) -> None:
    response = await register(client, adapter_files(), name=name)
    assert (response.status_code, response.json()["code"]) == (422, "invalid-name")


async def test_an_adapter_keeps_its_task(client: httpx.AsyncClient, services: Services, tmp_path: Path) -> None:
    publish(services, tmp_path, "de")
    response = await register(client, adapter_files(), task="chat")
    assert (response.status_code, response.json()["code"]) == (409, "conflict")


async def test_an_export_can_be_registered_again(client: httpx.AsyncClient, services: Services, tmp_path: Path) -> None:
    publish(services, tmp_path, "de", state={"target_language": "de"})
    response = await client.get("/api/adapters/de@1/archive")
    assert response.headers["content-type"] == "application/zip"
    assert "de-1.zip" in response.headers["content-disposition"]
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    files = {name: archive.read(name) for name in archive.namelist()}
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "task_state.json"}
    again = await register(client, files, name="copy")
    assert again.json()["digest"] == (await client.get("/api/adapters/de/versions/1")).json()["digest"]
    beyond = await client.get("/api/adapters/de@1/archive", headers={"Range": "bytes=999999-"})
    assert beyond.status_code == 416
    assert list(services.uploads.iterdir()) == []


async def test_a_deleted_adapter_leaves_the_engine_too(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    ids = [publish(services, tmp_path, "de").engine_id for _ in range(3)]
    assert (await client.delete("/api/adapters/de/versions/2")).status_code == 204
    assert (await client.get("/api/adapters/de/versions/2")).json()["code"] == "unknown-version"
    assert engine_of(services).unloaded == [ids[1]]
    assert (await client.delete("/api/adapters/de")).status_code == 204
    assert (await client.get("/api/adapters/de")).status_code == 404
    assert engine_of(services).unloaded == [ids[1], ids[0], ids[2]]


async def test_observers_hear_of_a_published_version(tmp_path: Path) -> None:
    plugin = ExtraPlugin()
    services = make_services(tmp_path, plugin=plugin)
    async with in_memory(services) as client:
        await register(client, adapter_files())
    services.observers.close()
    assert [version["ref"] for version in plugin.published] == ["de@1"]
    services.registry.close()
