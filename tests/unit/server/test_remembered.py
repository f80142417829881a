"""The registry's database goes away, and who was served goes on being served."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from graft_server.access import keyring as keyring_module
from graft_server.registry.errors import UnavailableError, UnknownError
from graft_server.registry.visibility import Visibility, visible
from graft_server.routing import remembered as module
from graft_server.routing.remembered import Remembered
from graft_server.services import Services
from support.serving import publish


class Database:
    """Answers, or does not."""

    def __init__(self) -> None:
        self.answer: str | Exception = "first"
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_the_last_answer_holds_while_the_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    ask, database = Remembered(), Database()
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    assert ask("x", database) == "first"
    database.answer = "second"
    assert ask("x", database) == "second", "as long as it answers it is asked"
    database.answer = UnavailableError("db")
    assert [ask("x", database) for _ in range(5)] == ["second"] * 5
    assert database.asked == 3, "while it is away it is tried once a second"
    with pytest.raises(UnavailableError):
        ask("y", database)
    clock[0] += 1.1
    database.answer = "third"
    assert ask("x", database) == "third"


def test_what_is_gone_is_forgotten() -> None:
    ask, database = Remembered(), Database()
    ask("x", database)
    for answer in (UnknownError("adapter", "x"), UnavailableError("db")):
        database.answer = answer
        with pytest.raises(type(answer)):
            ask("x", database)


def test_nobody_is_answered_with_what_others_may_see() -> None:
    ask, database = Remembered(), Database()
    ask("x", database)
    database.answer = UnavailableError("db")
    token = visible.set(Visibility(("de-*",), "acme"))
    try:
        with pytest.raises(UnavailableError):
            ask("x", database)
    finally:
        visible.reset(token)
    assert ask("x", database) == "first"


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    ask, database = Remembered(), Database()
    for question in ("a", "b", "a", "c"):
        ask(question, database)
    database.answer = UnavailableError("db")
    assert (ask("a", database), ask("c", database)) == ("first", "first")
    with pytest.raises(UnavailableError):
        ask("b", database)


async def test_callers_go_on(
    client: httpx.AsyncClient, services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(services, tmp_path, "de")
    services.registry.create_key("root", ["admin"])
    key = services.registry.create_key("web", ["query"])[1]
    other = services.registry.create_key("late", ["query"])[1]
    services.keyring.changed()

    async def ask(adapter: str, key: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return await client.post("/api/predict", json={"adapter": adapter, "text": "hi"}, headers=headers)

    assert (await ask("de", key)).status_code == 200

    def away(*arguments: object) -> None:
        raise UnavailableError("db")

    for name in ("target", "key", "has_keys"):
        monkeypatch.setattr(services.registry, name, away)
    await asyncio.sleep(0.6)  # until the key would be looked up again
    assert (await ask("de", key)).status_code == 200
    for refused in (await ask("de@1", key), await ask("de", other)):
        assert (refused.status_code, refused.json()["code"]) == (503, "registry-unavailable")
    # A server that is cut off for longer does not know whether the key was revoked elsewhere.
    now = keyring_module.time.monotonic()
    monkeypatch.setattr(keyring_module.time, "monotonic", lambda: now + 301)
    assert (await ask("de", key)).status_code == 503
