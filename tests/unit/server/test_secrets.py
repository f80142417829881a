"""A key is in no log and no answer, wherever its holder has put it, and no caller writes lines into the log."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from graft_server.observability import configure_logging
from graft_server.services import Services
from support.serving import engine_of, on_socket

JSON = {"Content-Type": "application/json"}


@pytest.fixture(params=["plain", "json"])
def logged(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """All that a server logs, at its most talkative."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream, style = io.StringIO(), request.param
    configure_logging("debug", "plain" if style == "plain" else "json", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


async def test_a_key_in_the_wrong_place(services: Services, logged: io.StringIO) -> None:
    key = services.registry.create_key("root", ["admin"])[1]
    secret = key.split("_", 2)[2]
    header = {"Authorization": f"Bearer {key}"}
    chat = {"model": "base", "messages": [{"role": "user", "content": "hi"}]}
    async with on_socket(services) as (client, _):
        answers = [
            await client.get("/api/adapters", params={"api_key": key, "key": key}),
            await client.get("/api/adapters", params={"task": "translation", "key": key}, headers=header),
            await client.get("/v1/models", headers={"X-Api-Key": key}),
            await client.get("/v1/models", headers={"Authorization": key}),
            await client.post("/v1/chat/completions", json={**chat, "api_key": key}, headers=header),
            await client.post("/v1/chat/completions", content=f'{{"key": "{key}"', headers={**header, **JSON}),
            await client.post("/v1/chat/completions", json=chat, headers={**header, "X-Graft-Timeout": key}),
            await client.post("/api/keys", json={"name": "web", "scopes": [key]}, headers=header),
            await client.get("/api/keys", headers=header),
            await client.get("/api/audit", headers=header),
        ]
        engine_of(services).answer = lambda request: 1 / 0  # type: ignore[assignment, return-value]
        answers.append(await client.post("/v1/chat/completions", json=chat, headers={**header, "X-Request-Id": key}))
    assert [answer.status_code for answer in answers] == [401, 200, 401, 401, 400, 400, 400, 422, 200, 200, 500]
    assert "ZeroDivisionError" in logged.getvalue()
    assert secret not in logged.getvalue()
    for answer in answers:
        assert secret not in answer.text + str(answer.headers)


async def test_the_audit_log_tells_of_a_key_without_it(services: Services) -> None:
    record, key = services.registry.create_key("root", ["admin"])
    services.registry.create_key("other", ["admin"])
    services.registry.revoke_key(record.id)
    text = repr(services.registry.audit()) + repr(services.registry.keys())
    assert "apikey.create" in text
    assert record.digest not in text
    assert key.split("_", 2)[2] not in text


@pytest.mark.parametrize(
    "path", ["/api/adapters/x%0A12:00:00%20info%20forged", "/api/adapters/%1B2J", "/nowhere%0D%0Ax"]
)
async def test_a_path_is_one_line_of_the_log(services: Services, logged: io.StringIO, path: str) -> None:
    async with on_socket(services) as (client, _):
        assert (await client.get(path)).status_code == 404
    lines = [line for line in logged.getvalue().splitlines() if "404" in line]
    assert len(lines) == 1
    assert path in lines[0]
    assert lines[0].isprintable()
