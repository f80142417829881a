"""``/v1/files`` by the official OpenAI SDK: uploads that are looked at, pages, contents, and whose files they are."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from graft_server.services import Services
from support.openai_sdk import Sdk, openai_sdk

CHAT = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}


@pytest.fixture
async def sdk(services: Services) -> AsyncIterator[Sdk]:
    async with openai_sdk(services) as clients:
        yield clients


def lines(*rows: Any) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def request(custom_id: str, **changes: Any) -> dict[str, Any]:
    body = {"model": "base", "messages": [{"role": "user", "content": "hello"}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body, **changes}


async def test_a_file_comes_back_as_it_was_sent_until_it_is_deleted(sdk: Sdk) -> None:
    content = lines(CHAT, CHAT)
    files = sdk.asynchronous.files
    file = await files.create(file=("chats.jsonl", content), purpose="fine-tune")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(content), "chats.jsonl", "fine-tune")
    assert abs(file.created_at - time.time()) < 60
    assert await files.retrieve(file.id) == file
    assert await files.wait_for_processing(file.id) == file
    assert (await files.content(file.id)).content == content
    deleted = await files.delete(file.id)
    assert (deleted.id, deleted.deleted) == (file.id, True)
    with pytest.raises(openai.NotFoundError, match="no file"):
        await files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError, match="no file"):
        await files.content(file.id)


async def test_lists_are_paged_by_the_sdk_in_both_orders_and_by_purpose(sdk: Sdk) -> None:
    files = sdk.asynchronous.files
    ids = [(await files.create(file=(f"{i}.jsonl", lines(CHAT)), purpose="fine-tune")).id for i in range(5)]
    batch = (await files.create(file=("b.jsonl", lines(request("a"))), purpose="batch")).id
    assert [file.id async for file in files.list(limit=2)] == [batch, *ids[::-1]]
    assert [file.id async for file in files.list(limit=2, order="asc", purpose="fine-tune")] == ids
    assert [file.id async for file in files.list(purpose="batch")] == [batch]
    listed = await asyncio.to_thread(lambda: [file.id for file in sdk.blocking.files.list(limit=4)])
    assert listed == [batch, *ids[::-1]]
    first = await files.list(limit=2)
    assert (len(first.data), first.has_more) == (2, True)


async def test_a_file_expires(sdk: Sdk, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sdk.asynchronous.files
    file = await files.create(
        file=("a.jsonl", lines(CHAT)), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at is not None
    assert abs(file.expires_at - time.time() - 3600) < 60
    monkeypatch.setattr(time, "time", lambda clock=time.time: clock() + 3601)
    with pytest.raises(openai.NotFoundError):
        await files.retrieve(file.id)
    assert (await files.list()).data == []
    stored = services.registry.kept_files.stored(file.id)
    assert stored.content.exists()
    services.registry.kept_files.sweep()
    assert not stored.path.exists()


@pytest.mark.parametrize(
    ("purpose", "content", "told"),
    [
        ("fine-tune", lines(CHAT, '{"messages": '), r"rows.jsonl:2: not valid JSON"),
        ("fine-tune", lines(CHAT, {"messages": CHAT["messages"][:1]}), r"rows.jsonl:2:messages: "),
        ("fine-tune", lines(CHAT, {"messages": CHAT["messages"][::-1]}), r"rows.jsonl:2.*must be from the assistant"),
        ("fine-tune", lines({"en": "a", "de": "b"}, [1]), r"rows.jsonl:2: a row must be a JSON object"),
        ("fine-tune", b"", r"rows.jsonl: there are no rows in it"),
        ("batch", b"\n", r"rows.jsonl: there are no requests in it"),
        ("batch", lines(request("a"), request("b", method="GET")), r"rows.jsonl:2:method: "),
        ("batch", lines(request("a"), request("a")), r"rows.jsonl:2:custom_id: 'a' stands at rows.jsonl:1 already"),
        ("batch", lines(request("a", url="/v1/images")), r"rows.jsonl:1:url: .*chat/completions"),
        ("batch", lines(request("a", body={"stream": True})), r"rows.jsonl:1:body.stream: .*not streamed"),
        ("batch", lines({"custom_id": "a"}, {"custom_id": "b"}), r"rows.jsonl:1:method: .*and 1 more fault"),
        ("batch", b'{"custom_id": "\xff"}', r"rows.jsonl:1: byte 0xff .* is not valid UTF-8"),
    ],
)
async def test_a_bad_row_refuses_the_file_and_is_named(sdk: Sdk, purpose: Any, content: bytes, told: str) -> None:
    with pytest.raises(openai.BadRequestError, match=told) as refused:
        await sdk.asynchronous.files.create(file=("rows.jsonl", content), purpose=purpose)
    assert (refused.value.code, refused.value.param, refused.value.type) == (
        "invalid_data",
        "file",
        "invalid_request_error",
    )
    assert (await sdk.asynchronous.files.list()).data == []


async def test_what_no_file_can_be(sdk: Sdk) -> None:
    files = sdk.asynchronous.files
    with pytest.raises(openai.BadRequestError, match="'fine-tune' or 'batch'") as refused:
        await files.create(file=("a.jsonl", lines(CHAT)), purpose="vision")
    assert refused.value.param == "purpose"
    with pytest.raises(openai.BadRequestError, match=r"end with \.jsonl"):
        await files.create(file=("a.csv", b"a,b\n"), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="200 bytes"):
        await files.create(file=(f"{'a' * 300}.jsonl", lines(CHAT)), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="limit"):
        await files.list(limit=0)
    with pytest.raises(openai.NotFoundError, match="no file 'file-none'"):
        await files.list(after="file-none")


async def test_another_tenant_never_sees_a_file(services: Services) -> None:
    keys = {
        tenant: services.registry.create_key(tenant, scopes, tenant=tenant if tenant != "root" else None)[1]
        for tenant, scopes in (("root", ["admin"]), ("acme", ["query", "train"]), ("other", ["query", "train"]))
    }
    services.keyring.changed()
    async with (
        openai_sdk(services, api_key=keys["acme"]) as acme,
        openai_sdk(services, api_key=keys["other"]) as other,
    ):
        file = await acme.asynchronous.files.create(file=("a.jsonl", lines(CHAT)), purpose="fine-tune")
        assert [each.id async for each in acme.asynchronous.files.list()] == [file.id]
        assert (await other.asynchronous.files.list()).data == []
        for touch in ("retrieve", "content", "delete"):
            with pytest.raises(openai.NotFoundError, match="no file"):
                await getattr(other.asynchronous.files, touch)(file.id)
        assert await acme.asynchronous.files.retrieve(file.id) == file
