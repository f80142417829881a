"""Models as the official OpenAI SDK lists, shows and deletes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from graft_client.schemas.routes import RouteSpec, RouteTarget
from graft_server.services import Services
from support.openai_sdk import Sdk, openai_sdk
from support.serving import publish


@pytest.fixture
async def sdk(services: Services) -> AsyncIterator[Sdk]:
    async with openai_sdk(services) as clients:
        yield clients


async def test_aliases_and_versions_are_models(sdk: Sdk, services: Services, tmp_path: Path) -> None:
    publish(services, tmp_path, "de")
    publish(services, tmp_path, "de")
    services.registry.aliases.promote("de", "production", 1, seen=None, who="root")
    expected = ["tiny", "de", "de@production", "de@1", "de@2"]
    assert [model.id async for model in sdk.asynchronous.models.list()] == expected
    assert await asyncio.to_thread(lambda: [model.id for model in sdk.blocking.models.list()]) == expected
    for name, root in (("de", "de@2"), ("de@1", "de@1"), ("de@production", "de@1"), ("tiny", "tiny")):
        model = await sdk.asynchronous.models.retrieve(name)
        assert (model.id, model.object, (model.model_extra or {})["root"]) == (name, "model", root)
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.asynchronous.models.retrieve("dee")
    assert caught.value.code == "model_not_found"


async def test_a_version_and_a_whole_adapter_are_deleted(sdk: Sdk, services: Services, tmp_path: Path) -> None:
    publish(services, tmp_path, "de")
    publish(services, tmp_path, "de")
    gone = await sdk.asynchronous.models.delete("de@1")
    assert (gone.id, gone.object, gone.deleted) == ("de@1", "model", True)
    assert [model.id async for model in sdk.asynchronous.models.list()] == ["tiny", "de", "de@2"]
    assert (await asyncio.to_thread(sdk.blocking.models.delete, "de")).deleted
    assert [model.id async for model in sdk.asynchronous.models.list()] == ["tiny"]
    for model in ("de", "de@1", f"de@{10**30}", f"de@{'1' * 5000}"):
        with pytest.raises(openai.NotFoundError):
            await sdk.asynchronous.models.delete(model)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("tiny", "base model can't be deleted"),
        ("de@production", "is an alias"),
        ("de", "is in route"),
        ("mix", "is a route"),
    ],
)
async def test_what_can_not_be_deleted(sdk: Sdk, services: Services, tmp_path: Path, model: str, reason: str) -> None:
    publish(services, tmp_path, "de")
    services.registry.aliases.promote("de", "production", 1, seen=None, who="root")
    spec = RouteSpec(targets=[RouteTarget(ref="de@1", weight=100)])
    services.registry.routes.set("mix", spec, who="root")
    with pytest.raises(openai.BadRequestError, match=reason) as caught:
        await sdk.asynchronous.models.delete(model)
    assert caught.value.code == "conflict"


async def test_a_key_without_the_scope_deletes_nothing(services: Services, tmp_path: Path) -> None:
    publish(services, tmp_path, "de")
    services.registry.create_key("root", ["admin"])
    _, secret = services.registry.create_key("app", ["query"])
    async with openai_sdk(services, api_key=secret) as sdk:
        with pytest.raises(openai.PermissionDeniedError, match="manage"):
            await sdk.asynchronous.models.delete("de")
        assert (await sdk.asynchronous.models.retrieve("de")).id == "de"
