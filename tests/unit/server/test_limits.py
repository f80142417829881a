"""Limits of keys and adapters as callers meet them: what is let through, what is refused, and what the headers say."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from graft_client.schemas.limits import Limits, LimitsChange
from graft_server.access.scopes import NEEDS
from graft_server.quotas.meter import duration
from graft_server.services import Services
from support.openai_sdk import openai_sdk
from support.serving import engine_of, in_memory, make_services, ndjson, on_socket, publish

CHAT = {"model": "base", "messages": [{"role": "user", "content": "hello you"}], "max_tokens": 10}
FIVE, SIX = LimitsChange(requests_per_minute=5), LimitsChange(requests_per_minute=6)
ASK = {"adapter": "de", "text": "Turn off the lights", "sampling": {"max_tokens": 10}}


@pytest.fixture
def admin(services: Services) -> str:
    return services.registry.create_key("root", ["admin"])[1]


def key_with(services: Services, **limits: int) -> dict[str, str]:
    """The header of a new key with limits."""
    key = services.registry.create_key("web", ["query"], limits=Limits(**limits))[1]
    return {"Authorization": f"Bearer {key}"}


def left(answer: httpx.Response, figure: str = "requests") -> int:
    return int(answer.headers[f"x-ratelimit-remaining-{figure}"])


async def test_two_servers_let_through_what_the_limit_says(services: Services, tmp_path: Path, admin: str) -> None:
    other = make_services(tmp_path / "other", database_url=f"sqlite:///{services.settings.data_dir / 'registry.db'}")
    headers = key_with(services, requests_per_minute=6, tokens_per_minute=1000)
    running = [asyncio.create_task(each.presence.run()) for each in (services, other)]
    async with in_memory(services) as first, in_memory(other) as second:

        async def both_know() -> None:
            while {services.presence.servers, other.presence.servers} != {2}:
                await asyncio.sleep(0.05)

        await asyncio.wait_for(both_know(), 10)
        answers = [
            await client.post("/v1/chat/completions", json=CHAT, headers=headers)
            for _ in range(6)
            for client in (first, second)
        ]
        assert [answer.status_code for answer in answers] == [200] * 6 + [429] * 6
        assert [left(answer) for answer in answers[:6]] == [2, 2, 1, 1, 0, 0]
        assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"3"}
        assert "6 requests a minute, in equal shares at 2 servers" in answers[-1].json()["error"]["message"]
        # A third of a unit comes back each ten seconds, half of that at each server.
        assert 15 <= int(answers[-1].headers["Retry-After"]) <= 20
        # More than the share of one server, and less than the limit: it fits in, as it did with one server.
        large = {**CHAT, "max_tokens": 70}
        one = key_with(services, tokens_per_minute=100)
        assert (await first.post("/v1/chat/completions", json=large, headers=one)).status_code == 200
        too_large = await first.post("/v1/chat/completions", json={**CHAT, "max_tokens": 500}, headers=one)
        assert too_large.status_code == 400
        # The other one ends, and this one enforces all of the limit.
        running[1].cancel()
        await other.presence.leave()
        while services.presence.servers != 1:
            await asyncio.sleep(0.05)
        later = await first.post("/v1/chat/completions", json=CHAT, headers=key_with(services, requests_per_minute=6))
        assert (later.headers["x-ratelimit-limit-requests"], left(later)) == ("6", 5)
    running[0].cancel()
    other.registry.close()


async def test_requests_a_minute_of_a_key(client: httpx.AsyncClient, services: Services, admin: str) -> None:
    headers = key_with(services, requests_per_minute=2)
    first, second, third = [await client.post("/v1/chat/completions", json=CHAT, headers=headers) for _ in range(3)]
    assert [first.status_code, second.status_code, third.status_code] == [200, 200, 429]
    assert [left(first), left(second), left(third)] == [1, 0, 0]
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    assert "x-ratelimit-limit-tokens" not in first.headers
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert third.json()["error"]["type"] == "rate_limit_error"
    assert "2 requests a minute" in third.json()["error"]["message"]
    assert 25 <= int(third.headers["Retry-After"]) <= 30
    # Another key has its own, and so has the same one for what asks no model.
    assert (await client.post("/v1/chat/completions", json=CHAT, headers=bearer(admin))).status_code == 200
    assert (await client.get("/v1/models", headers=headers)).status_code == 200
    native = await client.post("/api/predict", json={"task": "chat", "text": "hi"}, headers=headers)
    assert (native.status_code, native.json()["code"]) == (429, "rate-limited")
    assert native.headers["content-type"] == "application/problem+json"
    assert "Retry-After" in native.headers
    figures = (await client.get("/metrics", headers=bearer(admin))).text
    assert 'graft_rate_limited_total{figure="requests",owner="key"} 2.0' in figures


async def test_a_stream_is_refused_before_it_begins(client: httpx.AsyncClient, services: Services, admin: str) -> None:
    headers = key_with(services, requests_per_minute=1)
    native = {"task": "chat", "text": "hi", "stream": True}
    first = await client.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=headers)
    assert (first.status_code, left(first)) == (200, 0)
    for path, body in (("/v1/chat/completions", {**CHAT, "stream": True, "n": 2}), ("/api/predict", native)):
        refused = await client.post(path, json=body, headers=headers)
        assert refused.status_code == 429
        assert 0 < int(refused.headers["Retry-After"]) <= 60


async def test_tokens_are_reserved_and_settle_for_what_was_used(
    client: httpx.AsyncClient, services: Services, admin: str
) -> None:
    headers = key_with(services, tokens_per_day=1000, tokens_per_minute=100_000)
    engine = engine_of(services)
    engine.hold()
    body = {**CHAT, "max_tokens": 900}
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=body, headers=headers))
    await engine.until(lambda engine: len(engine.running) == 1)
    refused = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert refused.status_code == 429
    assert "1000 tokens a day" in refused.json()["error"]["message"]
    assert left(refused, "tokens") < 100
    engine.release()
    answer = await asking
    used = answer.json()["usage"]["total_tokens"]
    assert used == 5
    assert 1000 - used <= left(answer, "tokens") <= 1000 - used + 1
    assert answer.headers["x-ratelimit-limit-tokens"] == "1000"


async def test_what_can_never_fit_is_no_matter_of_waiting(
    client: httpx.AsyncClient, services: Services, admin: str
) -> None:
    headers = key_with(services, tokens_per_minute=100)
    answer = await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 500}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "beyond_limit")
    assert "max_tokens" in answer.json()["error"]["message"]
    assert "Retry-After" not in answer.headers
    assert left(answer, "tokens") == 100


async def test_an_adapter_has_its_limit_for_all_keys_together(
    client: httpx.AsyncClient, services: Services, admin: str, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de")
    publish(services, tmp_path, "fr")
    publish(services, tmp_path, "de")
    limited = await client.post("/api/adapters/de/limits", json={"requests_per_minute": 2}, headers=bearer(admin))
    assert limited.json()["limits"] == {"requests_per_minute": 2, "tokens_per_minute": None, "tokens_per_day": None}
    one, other = key_with(services), key_with(services, requests_per_minute=100)
    answers = [
        await client.post("/api/predict", json={**ASK, "adapter": adapter}, headers=headers)
        for adapter, headers in (("de", one), ("de@1", other), ("de", other), ("fr", other))
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 200]
    assert "adapter 'de'" in answers[2].json()["detail"]
    # Of two limits the headers tell the one with less left.
    assert [answer.headers.get("x-ratelimit-limit-requests") for answer in answers] == ["2", "2", "2", "100"]
    # The refused one took nothing from its key.
    assert left(answers[3]) == 98


async def test_limits_are_changed_for_a_running_server(
    client: httpx.AsyncClient, services: Services, admin: str
) -> None:
    headers = key_with(services, requests_per_minute=1)
    key_id = headers["Authorization"].split("_")[1]
    chat = [await client.post("/v1/chat/completions", json=CHAT, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in chat] == [200, 429]
    path = f"/api/keys/{key_id}/limits"
    assert (await client.post(path, json={"requests_per_minute": 5}, headers=headers)).status_code == 403
    changed = await client.post(path, json={"requests_per_minute": 5}, headers=bearer(admin))
    assert changed.json()["limits"]["requests_per_minute"] == 5
    answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert (answer.status_code, left(answer)) == (200, 4)
    changed = await client.post(path, json={"tokens_per_minute": 0}, headers=bearer(admin))
    assert changed.json()["limits"] == {"requests_per_minute": 5, "tokens_per_minute": 0, "tokens_per_day": None}
    assert (await client.post(path, json={"requests_per_minute": -1}, headers=bearer(admin))).status_code == 422
    misspelt = {"name": "x", "scopes": ["query"], "limits": {"request_per_minute": 5}}
    assert (await client.post("/api/keys", json=misspelt, headers=bearer(admin))).status_code == 422
    assert (await client.post("/api/keys/nobody/limits", json={}, headers=bearer(admin))).status_code == 404
    logged = (await client.get("/api/audit", params={"target": key_id}, headers=bearer(admin))).json()
    assert logged[0]["detail"] == {"limits": {"requests_per_minute": 5, "tokens_per_minute": 0}}


async def test_the_settings_hold_where_a_key_says_nothing(tmp_path: Path) -> None:
    services = make_services(tmp_path, key_requests_per_minute=1, adapter_tokens_per_minute=1000)
    publish(services, tmp_path, "de")
    async with in_memory(services) as client:
        # Without keys, all callers are one.
        answers = [await client.post("/api/predict", json=ASK) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert "a server without keys has 1 requests a minute" in answers[1].json()["detail"]
        assert answers[0].headers["x-ratelimit-limit-tokens"] == "1000"
        services.registry.create_key("root", ["admin"])
        headers = key_with(services, requests_per_minute=0)
        services.keyring.changed()
        services.registry.limit_adapter("de", LimitsChange(tokens_per_minute=0))
        services.meter.changed()
        answers = [await client.post("/api/predict", json=ASK, headers=headers) for _ in range(3)]
    services.registry.close()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert not [name for name in answers[2].headers if name.startswith("x-ratelimit")]


async def test_several_answers_are_one_request_and_share_their_prompt(
    client: httpx.AsyncClient, services: Services, admin: str
) -> None:
    headers = key_with(services, requests_per_minute=10, tokens_per_day=10_000)
    answer = await client.post("/v1/chat/completions", json={**CHAT, "n": 4}, headers=headers)
    used = answer.json()["usage"]["total_tokens"]
    assert used == 2 + 4 * 3
    assert left(answer) == 9
    assert 10_000 - used <= left(answer, "tokens") <= 10_000 - used + 10
    listed = await client.post(
        "/v1/completions",
        json={"model": "base", "prompt": ["one two", "three"], "n": 2, "max_tokens": 4000},
        headers=headers,
    )
    # Of the whole only the context's length can be computed for each: 1000.
    assert left(listed) == 8
    # All of them or none.
    headers = key_with(services, tokens_per_minute=3000)
    requests = len(engine_of(services).requests)
    many = await client.post(
        "/v1/completions", json={"model": "base", "prompt": "one", "n": 4, "max_tokens": 999}, headers=headers
    )
    assert many.status_code == 400
    assert len(engine_of(services).requests) == requests


async def test_a_caller_that_hangs_up_pays_for_what_was_computed(services: Services, admin: str) -> None:
    headers = key_with(services, tokens_per_day=100_000)
    engine = engine_of(services)
    engine.answer = lambda request: "word " * 100_000
    body = {"task": "chat", "text": "a b c d", "stream": True, "sampling": {"max_tokens": 900}}
    async with on_socket(services) as (client, _):
        async with client.stream("POST", "/api/predict", json=body, headers=headers) as answer:
            # What is reserved shows while it runs.
            assert left(answer, "tokens") < 100_000 - 800
            async for _ in answer.aiter_text():
                engine.hold()
                break
        await engine.until(lambda engine: not engine.running)
        engine.release()
        engine.answer = lambda request: "short"
        after = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    # Some words of it came, not all 900.
    assert 100_000 - 800 < left(after, "tokens") < 100_000 - 4


async def test_what_never_reached_the_engine_counts_nothing(
    client: httpx.AsyncClient, services: Services, admin: str
) -> None:
    headers = key_with(services, requests_per_minute=5, tokens_per_minute=10_000)
    engine = engine_of(services)
    engine.state, engine.error = "failed", "no model"
    refused = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert refused.status_code == 503
    engine.state = "ready"
    unknown = await client.post("/v1/chat/completions", json={**CHAT, "model": "nobody"}, headers=headers)
    assert unknown.status_code == 404
    assert (left(unknown), left(unknown, "tokens")) == (5, 10_000)


async def test_embeddings_count(client: httpx.AsyncClient, services: Services, admin: str) -> None:
    headers = key_with(services, requests_per_minute=2, tokens_per_day=1000)
    body = {"model": "base", "input": ["one two three", "four"]}
    answers = [await client.post("/v1/embeddings", json=body, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert left(answers[0], "tokens") == 1000 - 4
    assert left(answers[0]) == 1


async def test_bulk_goes_on_at_the_pace_of_the_limit(
    client: httpx.AsyncClient, services: Services, admin: str, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de")
    headers = key_with(services, requests_per_minute=120)
    started = asyncio.get_running_loop().time()
    answer = await client.post("/api/predict/bulk", json={"items": [ASK] * 123}, headers=headers)
    assert answer.headers["x-ratelimit-limit-requests"] == "120"
    assert all("result" in line for line in ndjson(answer.text))
    # 120 at once, and one each half second.
    assert asyncio.get_running_loop().time() - started > 1.4
    # What would take longer than its timeout is told so, as by a limit of the day.
    headers = key_with(services, tokens_per_day=20)
    answer = await client.post("/api/predict/bulk", json={"items": [{**ASK, "timeout": 30}] * 3}, headers=headers)
    codes = [line.get("problem", {}).get("code") for line in ndjson(answer.text)]
    assert sorted(map(str, codes)) == ["None", "rate-limited", "rate-limited"]
    # A row that never fits does not wait for ever.
    headers = key_with(services, tokens_per_minute=500)
    items = [{**ASK, "sampling": {"max_tokens": 900}}, ASK]
    answer = await client.post("/api/predict/bulk", json={"items": items}, headers=headers)
    problems = {line["index"]: line.get("problem", {}).get("code") for line in ndjson(answer.text)}
    assert problems == {0: "beyond-limit", 1: None}


async def test_a_row_in_bulk_counts_for_the_adapter_that_it_asks_alone(
    client: httpx.AsyncClient, services: Services, admin: str, tmp_path: Path
) -> None:
    for name in ("de", "fr"):
        publish(services, tmp_path, name)
    await client.post("/api/adapters/de/limits", json={"requests_per_minute": 2}, headers=bearer(admin))
    items = [{"adapter": name, "text": "x", "timeout": 2} for name in ("de", *["fr"] * 6)]
    answer = await client.post("/api/predict/bulk", json={"items": items}, headers=bearer(admin))
    assert all("result" in line for line in ndjson(answer.text))
    alone = await client.post("/api/predict", json={"adapter": "de", "text": "x"}, headers=bearer(admin))
    assert (alone.status_code, left(alone)) == (200, 0)


async def test_a_key_that_ends_while_bulk_waits_for_its_limit(services: Services, admin: str) -> None:
    headers = key_with(services, requests_per_minute=1)
    async with on_socket(services) as (client, _):
        body = {"items": [{"task": "chat", "text": "hi"}] * 3}
        bulk = asyncio.create_task(client.post("/api/predict/bulk", json=body, headers=headers))
        await engine_of(services).until(lambda engine: len(engine.requests) == 1)
        services.registry.revoke_key(headers["Authorization"].split("_")[1])
        async with asyncio.timeout(3):
            answer = await bulk
    assert answer.text.count('"unauthorized"') == 2


async def test_an_evaluation_waits_for_its_limit(services: Services, admin: str, tmp_path: Path) -> None:
    publish(services, tmp_path, "de", state={"target_language": "German"})
    rows = "\n".join(f'{{"source": "Turn off {index}", "target": "Ausschalten"}}' for index in range(3))
    headers = bearer(admin)
    services.registry.limit_key(admin.split("_")[1], LimitsChange(requests_per_minute=120))
    async with in_memory(services) as client:
        files = [("files", ("rows.jsonl", rows.encode()))]
        stored = await client.post("/api/datasets", data={"task": "translation"}, files=files, headers=headers)
        await client.post("/api/predict/bulk", json={"items": [ASK] * 120}, headers=headers)
        body = {"adapter": "de", "dataset": stored.json()["id"]}
        answer = await client.post("/api/evaluations", json=body, headers=headers)
    assert ndjson(answer.text)[-1]["summary"]["adapter"]["rows"] == 3
    assert answer.headers["x-ratelimit-limit-requests"] == "120"


async def test_who_waits_for_a_limit_keeps_nobody_from_evaluating(tmp_path: Path) -> None:
    services = make_services(tmp_path, max_sequences=2)
    admin = services.registry.create_key("root", ["admin"])[1]
    limits = Limits(requests_per_minute=1)
    slow = services.registry.create_key("slow", ["query", "train"], tenant="acme", limits=limits)[1]
    rows = "\n".join(f'{{"source": "Turn off {index}", "target": "Ausschalten"}}' for index in range(20))
    async with in_memory(services) as client:

        async def evaluate(key: str) -> httpx.Response:
            files = [("files", ("rows.jsonl", rows.encode()))]
            data = {"task": "translation"}
            stored = await client.post("/api/datasets", data=data, files=files, headers=bearer(key))
            body = {"adapter": "base", "task": "translation", "dataset": stored.json()["id"]}
            return await client.post("/api/evaluations", json=body, headers=bearer(key))

        waiting = asyncio.create_task(evaluate(slow))
        await engine_of(services).until(lambda engine: len(engine.requests) == 1)
        async with asyncio.timeout(20):
            answer = await evaluate(admin)
        assert ndjson(answer.text)[-1]["summary"]["adapter"]["rows"] == 20
        assert not waiting.done()
        waiting.cancel()
    services.registry.close()


async def test_a_shadow_is_not_on_the_callers_account(services: Services, admin: str, tmp_path: Path) -> None:
    from graft_client.schemas.routes import RouteSpec, RouteTarget

    publish(services, tmp_path, "de")
    publish(services, tmp_path, "de")
    spec = RouteSpec(targets=[RouteTarget(ref="de@1", weight=100)], shadow="de@2")
    services.registry.routes.set("translation", spec, who="", why="")
    headers = key_with(services, requests_per_minute=10)
    async with in_memory(services) as client:
        await client.post("/api/predict", json={"task": "translation", "text": "hello"}, headers=headers)
        await services.shadows.settled()
        answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert len(engine_of(services).requests) == 3
    assert left(answer) == 8


async def test_the_sdk_waits_as_long_as_it_is_told(services: Services, admin: str) -> None:
    key = key_with(services, requests_per_minute=30)["Authorization"].split()[1]
    hello: Any = CHAT["messages"]
    async with openai_sdk(services, api_key=key, max_retries=0) as sdk:

        async def ask(sdk: openai.AsyncOpenAI) -> Any:
            return await sdk.chat.completions.with_raw_response.create(model="base", messages=hello)

        async def ask_until_refused() -> None:
            for _ in range(40):
                await ask(sdk.asynchronous)

        assert (await ask(sdk.asynchronous)).headers["x-ratelimit-remaining-requests"] == "29"
        with pytest.raises(openai.RateLimitError) as caught:
            await ask_until_refused()
        assert caught.value.code == "rate_limit_exceeded"
        wait = int(caught.value.response.headers["retry-after"])
        started = asyncio.get_running_loop().time()
        answer = await ask(sdk.asynchronous.with_options(max_retries=2))
        waited = asyncio.get_running_loop().time() - started
    assert answer.retries_taken == 1
    assert answer.parse().choices[0].message.content == "base: hello you"
    assert wait - 1.5 <= waited < wait + 5


METERED = [route for route, need in NEEDS.items() if need.metered]


@pytest.mark.parametrize("route", METERED)
async def test_every_route_that_asks_a_model_tells_what_is_left(
    client: httpx.AsyncClient, services: Services, admin: str, route: str
) -> None:
    method, path = route.split()
    answer = await client.request(method, path, json={}, headers=key_with(services, requests_per_minute=9))
    assert answer.status_code in (200, 400, 404, 422)
    assert (answer.headers["x-ratelimit-limit-requests"], left(answer)) == ("9", 9)


async def test_another_server_changes_a_limit(
    client: httpx.AsyncClient, services: Services, admin: str, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de")
    headers = key_with(services, requests_per_minute=100)
    first = await client.post("/api/predict", json=ASK, headers=headers)
    assert first.headers["x-ratelimit-limit-requests"] == "100"
    for change, limit in (
        (lambda: services.registry.limit_key(headers["Authorization"].split("_")[1], SIX), "6"),
        (lambda: services.registry.limit_adapter("de", FIVE), "5"),
    ):
        change()
        await asyncio.sleep(0.6)
        answer = await client.post("/api/predict", json=ASK, headers=headers)
        assert answer.headers["x-ratelimit-limit-requests"] == limit
    exported = services.registry.adapter("de")
    services.registry.delete_adapter("de")
    publish(services, tmp_path, "de")
    # A new adapter of the old name has none of it.
    assert (exported.limits, services.registry.adapter("de").limits) == (Limits(requests_per_minute=5), Limits())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.1201, "121ms"), (1, "1s"), (1.5, "1.5s"), (90, "1m30s"), (360, "6m0s"), (86392, "23h59m52s")],
)
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
