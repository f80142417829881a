"""Keys at the door: who gets in, what they may do and see, and what ends when a key does."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_client.errors import GraftError
from graft_client.schemas.keys import SCOPES
from graft_client.schemas.routes import RouteSpec, RouteTarget
from graft_server.access.principal import ANYONE
from graft_server.access.scopes import NEEDS, need_of
from graft_server.app import _check_reach, create_app
from graft_server.observability import configure_logging
from graft_server.registry import keys
from graft_server.services import Services
from support.serving import adapter_files, engine_of, in_memory, on_socket, parts, publish, sse
from support.waiting import until

ASK = {"text": "Turn off"}


@pytest.fixture
def admin(services: Services) -> str:
    """The first key."""
    return services.registry.create_key("root", ["admin"])[1]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def key_for(services: Services, *scopes: str, **limits: Any) -> str:
    return services.registry.create_key("somebody", scopes, **limits)[1]


def test_every_route_has_its_scope(services: Services) -> None:
    app = create_app(services)
    routes = {f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods}
    framework = {"GET /openapi.json", "GET /docs", "GET /docs/oauth2-redirect", "GET /redoc"}
    assert {route.replace(":path}", "}") for route in NEEDS} == routes | framework


def test_what_is_not_in_the_table_is_for_admins() -> None:
    assert need_of("POST", "/api/brand/new").scopes == {"admin"}
    assert need_of("GET", "/v1/models/org/name").scopes == set(SCOPES)


async def test_without_keys_anyone_on_this_machine_may_do_everything(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/keys")).json() == []
    # The official SDKs always send something.
    assert (await client.get("/v1/models", headers=bearer("none"))).status_code == 200


async def test_the_first_key_closes_the_server(client: httpx.AsyncClient, services: Services) -> None:
    refused = await client.post("/api/keys", json={"name": "web", "scopes": ["query"]})
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert "admin" in refused.json()["detail"]
    made = (await client.post("/api/keys", json={"name": "root", "scopes": ["admin"]})).json()
    answer = await client.get("/api/adapters")
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert (await client.get("/api/adapters", headers=bearer(made["key"]))).status_code == 200
    listed = await client.get("/api/keys", headers=bearer(made["key"]))
    assert [key["name"] for key in listed.json()] == ["root"]
    assert made["key"] not in listed.text
    assert made["key"].split("_", 2)[2] not in (services.settings.data_dir / "registry.db").read_bytes().decode(
        "latin-1"
    )


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer x", "Bearer graft_0_0", "Basic Zm9vOmJhcg==", "graft_"])
async def test_no_valid_key(client: httpx.AsyncClient, admin: str, header: str | None) -> None:
    answer = await client.get("/v1/models", headers={"Authorization": header} if header is not None else {})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_a_wrong_secret_reads_as_a_key_that_never_was(client: httpx.AsyncClient, admin: str) -> None:
    known, unknown = admin[:-4] + "AAAA", "graft_000000000000_" + admin.split("_", 2)[2]
    first, second = [(await client.get("/api/tasks", headers=bearer(key))).json() for key in (known, unknown)]
    assert first["detail"] == second["detail"]


async def test_probes_need_no_key(client: httpx.AsyncClient, admin: str) -> None:
    assert (await client.get("/health/live")).status_code == 200
    assert (await client.get("/health/ready")).status_code == 200


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("query", {"predict"}),
        ("train", {"check"}),
        ("manage", {"delete"}),
        ("admin", {"predict", "check", "delete", "keys"}),
    ],
)
async def test_scopes(
    client: httpx.AsyncClient, services: Services, admin: str, tmp_path: Path, scope: str, allowed: set[str]
) -> None:
    publish(services, tmp_path, "de")
    headers = bearer(key_for(services, scope))
    answers = {
        "predict": await client.post("/api/predict", json={"adapter": "de", **ASK}, headers=headers),
        "check": await client.post("/api/jobs/check", json={"task": "chat", "adapter": "x"}, headers=headers),
        "keys": await client.get("/api/keys", headers=headers),
        "delete": await client.delete("/api/adapters/de", headers=headers),
    }
    assert {name for name, answer in answers.items() if answer.status_code < 300} == allowed
    assert {answer.json()["code"] for name, answer in answers.items() if name not in allowed} <= {"forbidden"}
    assert (await client.get("/api/adapters", headers=headers)).status_code == 200


async def test_nothing_is_read_of_a_body_that_is_refused(client: httpx.AsyncClient, admin: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        raise AssertionError("the body was asked for")
        yield b""

    assert (await client.post("/api/datasets", content=endless())).status_code == 401


@pytest.mark.parametrize("limits", [{"adapters": ["acme.*"]}, {"tenant": "acme"}])
async def test_what_a_key_may_not_see_does_not_exist(
    client: httpx.AsyncClient, services: Services, admin: str, tmp_path: Path, limits: dict[str, Any]
) -> None:
    publish(services, tmp_path, "acme.de")
    publish(services, tmp_path, "secret-strings")
    headers = bearer(key_for(services, *SCOPES[:3], **limits))
    engine_of(services).loaded = ("acme.de@1", "secret-strings@1")
    hidden = "secret-strings"
    for path in ("/api/adapters", "/v1/models", "/api/status"):
        text = (await client.get(path, headers=headers)).text
        assert "acme.de" in text
        assert hidden not in text
    assert (await client.get("/api/status", headers=headers)).json()["adapters"] == 1
    # The same answers as for a name that was never used, the nearest name of the error included.
    for name in (hidden, "secret-stringz"):
        for method, path, body in (
            ("GET", f"/api/adapters/{name}", None),
            ("GET", f"/api/adapters/{name}/versions/1", None),
            ("GET", f"/api/adapters/{name}/versions/production", None),
            ("GET", f"/api/adapters/{name}/archive", None),
            ("GET", f"/api/adapters/{name}/history", None),
            ("POST", f"/api/adapters/{name}/aliases/production", {"version": 1}),
            ("DELETE", f"/api/adapters/{name}", None),
            ("POST", f"/api/adapters/{name}/versions/1/pin", None),
            ("GET", f"/v1/models/{name}", None),
            ("POST", "/api/predict", {"adapter": name, **ASK}),
        ):
            answer = await client.request(method, path, json=body, headers=headers)
            assert answer.status_code == 404, path
            assert hidden not in answer.text.replace(name, "")
    assert [adapter.name for adapter in services.registry.adapters()] == ["acme.de", hidden]
    # A task alone routes to what may be seen, though the other version is the newer one.
    answer = await client.post("/api/predict", json={"task": "translation", **ASK}, headers=headers)
    assert answer.json()["adapter"] == "acme.de@1"
    assert (await client.get("/metrics", headers=headers)).status_code == 403


async def test_a_route_is_seen_by_its_own_name_and_may_lead_to_what_is_not(
    client: httpx.AsyncClient, services: Services, admin: str, tmp_path: Path
) -> None:
    publish(services, tmp_path, "acme.de")
    publish(services, tmp_path, "shared")
    for route, target in (("acme.de-route", "shared@1"), ("secret-route", "acme.de@1")):
        services.registry.routes.set(route, RouteSpec(targets=[RouteTarget(ref=target, weight=100)]), who="root")
    headers = bearer(key_for(services, *SCOPES[:3], tenant="acme"))
    # The operator gave it this name, so it is the tenant's to use.
    answer = await client.post("/api/predict", json={"adapter": "acme.de-route", **ASK}, headers=headers)
    assert answer.json()["adapter"] == "shared@1"
    models = (await client.get("/v1/models", headers=headers)).text
    assert "acme.de-route" in models
    assert "secret-route" not in models
    answer = await client.post("/api/predict", json={"adapter": "secret-route", **ASK}, headers=headers)
    assert answer.status_code == 404
    # What a route leads to tells of other adapters.
    assert (await client.get("/api/routes", headers=headers)).status_code == 403


async def test_a_limited_key_makes_adapters_under_its_names_only(
    client: httpx.AsyncClient, services: Services, admin: str, tmp_path: Path
) -> None:
    publish(services, tmp_path, "taken")
    headers = bearer(key_for(services, "manage", tenant="acme"))
    answers = [
        await client.post(
            "/api/adapters", data={"name": name, "task": "translation"}, files=parts(adapter_files()), headers=headers
        )
        for name in ("taken", "free", "acme.new")
    ]
    assert [answer.status_code for answer in answers] == [422, 422, 201]
    assert answers[0].json()["detail"] == answers[1].json()["detail"].replace("free", "taken")


async def test_datasets_are_their_owners(client: httpx.AsyncClient, services: Services, admin: str) -> None:
    rows = b'{"source": "On", "target": "An"}\n{"source": "Off", "target": "Aus"}\n'
    keys = [admin, key_for(services, "train", tenant="acme"), key_for(services, "train", tenant="other")]
    ids = []
    for key in keys:
        sent = await client.post(
            "/api/datasets", data={"task": "translation"}, files=parts({"rows.jsonl": rows}), headers=bearer(key)
        )
        assert sent.status_code == 201, sent.text
        ids.append(sent.json()["id"])
    assert len(set(ids)) == 3
    assert [d["id"] for d in (await client.get("/api/datasets", headers=bearer(keys[1]))).json()] == [ids[1]]
    assert (await client.get(f"/api/datasets/{ids[2]}", headers=bearer(keys[1]))).status_code == 404
    assert len((await client.get("/api/datasets", headers=bearer(admin))).json()) == 3


async def test_an_expired_key(client: httpx.AsyncClient, services: Services, admin: str) -> None:
    key = key_for(services, "query", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    answer = await client.get("/api/adapters", headers=bearer(key))
    assert answer.status_code == 401
    assert "expired" in answer.json()["detail"]


async def test_the_last_admin_key_stays(client: httpx.AsyncClient, services: Services, admin: str) -> None:
    first = admin.split("_")[1]
    assert (await client.delete(f"/api/keys/{first}", headers=bearer(admin))).status_code == 409
    second = key_for(services, "admin")
    assert (await client.delete(f"/api/keys/{first}", headers=bearer(second))).status_code == 200
    assert (await client.get("/api/adapters", headers=bearer(admin))).status_code == 401
    assert (await client.delete("/api/keys/nobodys", headers=bearer(second))).json()["code"] == "unknown-key"


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_key_that_ends_in_mid_stream(services: Services, admin: str, how: str) -> None:
    engine = engine_of(services)
    engine.hold()
    body = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with on_socket(services) as (client, _):
        soon = datetime.now(UTC) + timedelta(seconds=2)
        key = key_for(services, "query", expires_at=soon if how == "expired" else None)
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=body, headers=bearer(key)))
        native = asyncio.create_task(
            client.post("/api/predict/bulk", json={"items": [{"task": "chat", **ASK}] * 2}, headers=bearer(key))
        )
        await engine.until(lambda e: len(e.running) == 3)
        if how == "revoked":
            services.registry.revoke_key(key.split("_")[1])  # by another server
        else:
            await until(lambda: datetime.now(UTC) >= soon)
        async with asyncio.timeout(2):
            answer, bulk = await asking, await native
        assert answer.status_code == 401
        assert how in answer.json()["error"]["message"]
        assert bulk.text.count('"unauthorized"') == 2
        assert not engine.running


async def test_a_stream_that_has_begun_ends_with_the_error(services: Services, admin: str) -> None:
    key = key_for(services, "query")
    engine = engine_of(services)
    engine.answer = lambda request: "word " * 100_000
    async with (
        on_socket(services) as (client, _),
        client.stream(
            "POST",
            "/api/predict",
            json={"task": "chat", **ASK, "stream": True, "sampling": {"max_tokens": 100_000}},
            headers=bearer(key),
        ) as answer,
    ):
        text = ""
        async for piece in answer.aiter_text():
            if not text:
                engine.hold()
                services.registry.revoke_key(key.split("_")[1])
            text += piece
    assert sse(text)[0]["event"] == "delta"
    assert sse(text)[-1]["event"] == "error"
    assert "revoked" in sse(text)[-1]["data"]
    assert not engine.running


async def test_the_log_of_changes(client: httpx.AsyncClient, services: Services, admin: str, tmp_path: Path) -> None:
    manager = key_for(services, "manage")
    publish(services, tmp_path, "de")
    await client.post("/api/adapters/de/versions/1/pin", headers=bearer(manager))
    await client.delete("/api/adapters/de", headers=bearer(manager))
    items = (await client.get("/api/audit", headers=bearer(admin))).json()
    who = f"somebody ({manager.split('_')[1]})"
    changes = [(item["actor"], item["action"], item["target"]) for item in items]
    assert (who, "version.change", "de@1") in changes
    assert (who, "version.delete", "de@1") in changes
    assert ("server", "version.create", "de@1") in changes
    assert [item["seq"] for item in items] == list(range(len(items), 0, -1))
    of_version = (await client.get("/api/audit", params={"target": "de@1"}, headers=bearer(admin))).json()
    assert [item["action"] for item in of_version] == ["version.delete", "version.change", "version.create"]
    assert of_version[1]["detail"] == {"pinned": True}
    older = (
        await client.get("/api/audit", params={"before": items[0]["seq"], "limit": 1}, headers=bearer(admin))
    ).json()
    assert older == items[1:2]
    assert (await client.get("/api/audit", headers=bearer(manager))).status_code == 403


def test_a_change_that_is_undone_leaves_no_entry(services: Services) -> None:
    before = services.registry.audit()
    with suppress(RuntimeError), services.registry._database.write() as session:
        keys.create(session, "x", ["admin"], adapters=(), tenant=None, expires_at=None)
        raise RuntimeError
    assert services.registry.audit() == before
    assert not services.registry.has_keys()


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("debug", "json", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


async def test_no_key_reaches_a_log(services: Services, admin: str, logged: io.StringIO) -> None:
    wrong = admin[:-4] + "AAAA"
    async with in_memory(services) as client:
        made = await client.post("/api/keys", json={"name": "web", "scopes": ["query"]}, headers=bearer(admin))
        key = made.json()["key"]
        for each in (admin, wrong, key):
            await client.get("/api/adapters", headers=bearer(each))
            await client.get("/api/keys", headers=bearer(each))
        await client.get("/api/adapters/nothing", headers=bearer(key))
        engine_of(services).answer = lambda request: 1 / 0  # a traceback
        await client.post("/api/predict", json={"task": "chat", **ASK}, headers=bearer(key))
    text = logged.getvalue()
    assert "ZeroDivisionError" in text
    assert not [secret for secret in (admin, wrong, key) if secret.split("_", 2)[2] in text]


def test_listening_wider_without_keys(services: Services) -> None:
    settings = services.settings.model_copy(update={"host": "0.0.0.0"})
    with pytest.raises(GraftError, match=r"graft keys create --data-dir .* --insecure"):
        _check_reach(settings, "http://10.0.0.1:8000", local_only=False)
    _check_reach(settings.model_copy(update={"insecure": True}), "http://10.0.0.1:8000", local_only=False)
    assert not ANYONE.may("admin")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "base", "input": "hi"}),
        ("/api/predict", {"task": "chat", "text": "hi"}),
        ("/api/predict", {"task": "chat", "text": "hi", "stream": True}),
        ("/v1/responses", {"model": "base", "input": "hi", "stream": True}),
        ("/v1/completions", {"model": "base", "prompt": ["one", "two"], "n": 2}),
        ("/api/evaluations", {"adapter": "de", "dataset": ""}),
        ("/api/jobs/{}/events", None),
    ],
)
async def test_whatever_is_in_flight_ends_with_its_key(
    services: Services, admin: str, tmp_path: Path, path: str, body: dict[str, Any] | None
) -> None:
    publish(services, tmp_path, "de", state={"target_language": "German"})
    headers = bearer(key := key_for(services, "query", "train"))
    engine = engine_of(services)
    engine.hold()
    rows = b'{"source": "Turn off", "target": "Ausschalten"}\n' * 3
    async with on_socket(services) as (client, _):
        files = parts({"rows.jsonl": rows})
        stored = await client.post("/api/datasets", data={"task": "translation"}, files=files, headers=headers)
        dataset = stored.json()["id"]
        job = services.registry.create_job(
            task="translation", adapter="new", dataset=dataset, method="lora", options={}
        )
        if body and "dataset" in body:
            body = {**body, "dataset": dataset}
        method = "POST" if body else "GET"
        asking = asyncio.create_task(client.request(method, path.format(job.id), json=body, headers=headers))
        await asyncio.sleep(0.3)
        assert not asking.done()
        services.registry.revoke_key(key.split("_")[1])
        async with asyncio.timeout(3):
            answer = await asking
    assert not engine.running
    # Following a job ends; whoever does so is told why when they come back.
    assert answer.status_code == 401 or '"unauthorized"' in answer.text or body is None
