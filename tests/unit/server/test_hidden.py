"""What a key may not see does not exist for it: the same answer, from the same queries, as for what never existed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from graft_client.schemas.jobs import JobState
from graft_client.schemas.limits import LimitsChange
from graft_client.schemas.routes import RouteSpec, RouteTarget
from graft_server.services import Services
from support.serving import engine_of, in_memory, parts, publish

ROWS = b'{"source": "Turn off", "target": "Ausschalten"}\n' * 3
ASK = {"text": "Turn off"}


@contextmanager
def statements(services: Services) -> Iterator[list[str]]:
    """The SQL of what happens in the body of the ``with``."""
    seen: list[str] = []
    engine = services.registry._database._engine

    def on_execute(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", on_execute)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", on_execute)


@pytest.fixture
def keys(services: Services) -> dict[str, dict[str, str]]:
    made = {
        "admin": services.registry.create_key("root", ["admin"])[1],
        "acme": services.registry.create_key("acme", ["query", "train", "manage"], tenant="acme")[1],
    }
    return {name: {"Authorization": f"Bearer {key}"} for name, key in made.items()}


@pytest.fixture
async def hidden(services: Services, keys: dict[str, dict[str, str]], tmp_path: Path) -> dict[str, str]:
    """A secret thing of each kind, beside the tenant's own."""
    publish(services, tmp_path, "acme.de", state={"target_language": "German"})
    publish(services, tmp_path, "secret")
    services.registry.limit_adapter("secret", LimitsChange(requests_per_minute=7777))
    found = {"adapter": "secret"}
    async with in_memory(services) as client:
        for owner in ("admin", "acme"):
            sent = await client.post(
                "/api/datasets",
                data={"task": "translation"},
                files=parts({"rows.jsonl": ROWS}),
                headers=keys[owner],
            )
            found["dataset" if owner == "admin" else "own_dataset"] = sent.json()["id"]
    job = services.registry.create_job(
        task="translation", adapter="secret", dataset=found["dataset"], method="lora", options={}
    )
    services.registry.update_job(job.id, state=JobState.failed, error="secret reasons")
    found["job"] = job.id
    return found


NOWHERE = {"adapter": "zzzzzz", "dataset": "0" * 24, "job": "0" * 12}

REQUESTS: list[tuple[str, str, str, dict[str, Any] | None]] = [
    ("adapter", "GET", "/api/adapters/{}", None),
    ("adapter", "GET", "/api/adapters/{}/versions/1", None),
    ("adapter", "GET", "/api/adapters/{}@1/bundle", None),
    ("adapter", "GET", "/api/adapters/{}/merged", None),
    ("adapter", "POST", "/api/adapters/{}/aliases/production/rollback", {}),
    ("adapter", "GET", "/v1/models/{}", None),
    ("adapter", "GET", "/v1/models/{}@1", None),
    ("adapter", "POST", "/api/predict", {"adapter": "{}", **ASK}),
    ("adapter", "POST", "/api/predict/bulk", {"items": [{"adapter": "{}", **ASK}]}),
    ("adapter", "POST", "/v1/chat/completions", {"model": "{}", "messages": [{"role": "user", "content": "hi"}]}),
    ("adapter", "POST", "/v1/completions", {"model": "{}@1", "prompt": "hi"}),
    ("adapter", "POST", "/v1/embeddings", {"model": "{}", "input": "hi"}),
    ("adapter", "POST", "/api/evaluations", {"adapter": "{}", "dataset": "own_dataset"}),
    ("adapter", "POST", "/api/evaluations", {"adapter": "acme.de", "against": "{}", "dataset": "own_dataset"}),
    ("adapter", "POST", "/api/merges", {"name": "acme.both", "adapters": ["acme.de", "{}"], "method": "cat"}),
    ("dataset", "GET", "/api/datasets/{}", None),
    ("dataset", "DELETE", "/api/datasets/{}", None),
    ("dataset", "POST", "/api/evaluations", {"adapter": "acme.de", "dataset": "{}"}),
    ("dataset", "POST", "/api/jobs", {"task": "translation", "adapter": "acme.x", "dataset": "{}", "method": "lora"}),
    (
        "dataset",
        "POST",
        "/api/adapters/acme.de/aliases/production/gate",
        {"version": 1, "dataset": "{}", "min_delta": 0},
    ),
    ("job", "GET", "/api/jobs/{}", None),
    ("job", "GET", "/api/jobs/{}/events", None),
    ("job", "POST", "/api/jobs/{}/cancel", None),
    ("job", "POST", "/api/jobs/{}/resume", None),
]


@pytest.mark.parametrize(("kind", "method", "path", "body"), REQUESTS, ids=[f"{r[1]} {r[2]}" for r in REQUESTS])
async def test_it_is_answered_as_what_never_was(
    client: httpx.AsyncClient,
    services: Services,
    keys: dict[str, dict[str, str]],
    hidden: dict[str, str],
    kind: str,
    method: str,
    path: str,
    body: dict[str, Any] | None,
) -> None:
    def filled(value: Any, name: str) -> Any:
        match value:
            case dict():
                return {key: filled(item, name) for key, item in value.items()}
            case list():
                return [filled(item, name) for item in value]
            case "own_dataset":
                return hidden["own_dataset"]
            case str():
                return value.replace("{}", name)
            case _:
                return value

    answers, work = [], []
    for name in (hidden[kind], NOWHERE[kind]):
        with statements(services) as seen:
            answer = await client.request(method, filled(path, name), json=filled(body, name), headers=keys["acme"])
        text = answer.text.replace(name, "NAME").replace(answer.headers["X-Request-Id"], "ID")
        limits = {key: value for key, value in answer.headers.items() if key.startswith("x-ratelimit")}
        answers.append((answer.status_code, text, limits))
        # Keys are looked at by the clock, whatever is asked.
        work.append(len([each for each in seen if each.startswith("SELECT") and "api_keys" not in each]))
    assert answers[0] == answers[1]
    assert answers[0][0] == 404 or path == "/api/predict/bulk"
    assert "unknown" in answers[0][1] or "model_not_found" in answers[0][1]
    # As long as it takes to say so: what is not seen costs no query more.
    assert work[0] == work[1]


async def test_what_is_in_the_way_of_a_change_is_not_named(
    client: httpx.AsyncClient, services: Services, keys: dict[str, dict[str, str]], hidden: dict[str, str]
) -> None:
    spec = RouteSpec(targets=[RouteTarget(ref="acme.de@1", weight=100)])
    services.registry.routes.set("secret-route", spec, who="root")
    job = services.registry.create_job(
        task="translation", adapter="secret", dataset=hidden["own_dataset"], method="lora", options={}
    )
    for path in ("/api/adapters/acme.de/versions/1", "/api/adapters/acme.de", f"/api/datasets/{hidden['own_dataset']}"):
        refused = await client.delete(path, headers=keys["acme"])
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
        assert not [each for each in ("secret", job.id) if each in refused.text]
        told = await client.delete(path, headers=keys["admin"])
        assert [each for each in ("secret-route", job.id) if each in told.text]


async def test_lists_and_figures_hold_nothing_of_it(
    client: httpx.AsyncClient, services: Services, keys: dict[str, dict[str, str]], hidden: dict[str, str]
) -> None:
    engine = engine_of(services)
    engine.loaded = ("acme.de@1", "secret@1")
    engine.hold()
    asking = asyncio.create_task(client.post("/api/predict", json={"adapter": "secret", **ASK}, headers=keys["admin"]))
    await engine.until(lambda engine: len(engine.running) == 1)
    for path in ("/api/adapters", "/api/jobs", "/api/datasets", "/api/status", "/v1/models", "/api/plugins"):
        text = (await client.get(path, headers=keys["acme"])).text
        assert not [each for each in ("secret", hidden["dataset"], hidden["job"]) if each in text], path
    status = (await client.get("/api/status", headers=keys["acme"])).json()
    assert (status["adapters"], status["versions"], status["jobs"].get("failed", 0)) == (1, 1, 0)
    for path in ("/metrics", "/api/audit", "/api/keys", "/api/routes"):
        assert (await client.get(path, headers=keys["acme"])).status_code == 403
    engine.release()
    await asking
    auto = await client.post("/api/predict", json={"adapter": "auto", **ASK}, headers=keys["acme"])
    assert "secret" not in auto.text + str(auto.headers)
