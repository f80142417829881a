"""``/v1/batches`` by the official OpenAI SDK: behind everybody, ended on time, and gone on with after a kill."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from graft_client.schemas.limits import Limits
from graft_server.api.openai import batch_calls
from graft_server.app import batch_runner
from graft_server.engine.base import GenerateRequest
from graft_server.problems import ProblemError
from graft_server.registry import outages
from graft_server.registry.errors import StorageFullError, StoreUnavailableError
from graft_server.services import Services
from graft_server.serving import batches
from graft_server.serving.batch_results import PartialResults
from graft_server.serving.batch_takeover import BatchTakeover
from graft_server.serving.batches import BatchRunner
from support.openai_sdk import Sdk, openai_sdk
from support.scripted_engine import ScriptedEngine
from support.serving import engine_of, make_services, publish
from support.waiting import until

CHAT = "/v1/chat/completions"


@asynccontextmanager
async def at_work(services: Services) -> AsyncIterator[BatchRunner]:
    """The batch runner, as a server starts it."""
    runner = batch_runner(services)
    await runner.start()
    services.batches = runner
    try:
        yield runner
    finally:
        services.batches = None
        await runner.stop()


@pytest.fixture
async def sdk(services: Services) -> AsyncIterator[Sdk]:
    async with openai_sdk(services) as clients, at_work(services):
        yield clients


def ask(custom_id: str, text: str = "hello", *, model: str = "base", **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def many(count: int) -> list[dict[str, Any]]:
    return [ask(f"r{n}", f"text {n}") for n in range(count)]


async def submit(sdk: Sdk, requests: Iterable[Any], *, window: Any = "24h", **fields: Any) -> Batch:
    content = "".join(json.dumps(request) + "\n" for request in requests).encode()
    file = await sdk.asynchronous.files.create(file=("requests.jsonl", content), purpose="batch")
    fields = {"endpoint": CHAT, **fields}
    return await sdk.asynchronous.batches.create(input_file_id=file.id, completion_window=window, **fields)


async def some_answered(services: Services, batch: Batch) -> Path:
    """Wait for a batch's first result; the folder where it keeps them."""
    output = services.settings.data_dir / "batches" / batch.id / "output.jsonl"
    await until(lambda: output.exists() and output.stat().st_size > 0)
    return output.parent


async def batch_stands(sdk: Sdk, batch_id: str, stands: Callable[[Batch], bool]) -> Batch:
    async with asyncio.timeout(20):
        while not stands(batch := await sdk.asynchronous.batches.retrieve(batch_id)):
            await asyncio.sleep(0.02)
    return batch


async def ended(sdk: Sdk, batch_id: str) -> Batch:
    return await batch_stands(sdk, batch_id, lambda b: b.status in ("completed", "failed", "expired", "cancelled"))


async def rows(sdk: Sdk, file_id: str | None) -> dict[str, Any]:
    """The lines of a result file by their ``custom_id``, each of which is there once."""
    assert file_id is not None
    lines = [json.loads(line) for line in (await sdk.asynchronous.files.content(file_id)).text.splitlines()]
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def texts(lines: dict[str, Any]) -> dict[str, str]:
    return {
        custom_id: line["response"]["body"]["choices"][0]["message"]["content"] for custom_id, line in lines.items()
    }


async def test_answers_and_errors_keep_their_custom_ids(sdk: Sdk, services: Services, tmp_path: Path) -> None:
    publish(services, tmp_path, "de", state={"target_language": "de"})
    requests = [
        *many(20),
        ask("tuned", "lamp", model="de"),
        ask("nobody", model="nobody"),
        ask("wrong", temperature=9),
        ask("long", "word " * 2000),
    ]
    batch = await submit(sdk, requests, metadata={"run": "1"})
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"run": "1"})
    assert batch.expires_at is not None
    assert abs(batch.expires_at - time.time() - 86400) < 60
    done = await ended(sdk, batch.id)
    assert (done.status, done.errors) == ("completed", None)
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 24, "completed": 21, "failed": 3}
    assert done.in_progress_at is not None
    assert done.in_progress_at <= (done.finalizing_at or 0) <= (done.completed_at or 0)
    answers = texts(await rows(sdk, done.output_file_id))
    assert answers == {**{f"r{n}": f"base: text {n}" for n in range(20)}, "tuned": "de@1: lamp"}
    errors = {
        custom_id: (line["response"]["status_code"], line["response"]["body"]["error"]["code"])
        for custom_id, line in (await rows(sdk, done.error_file_id)).items()
    }
    assert errors == {
        "nobody": (404, "model_not_found"),
        "wrong": (400, "invalid_request"),
        "long": (400, "context_length_exceeded"),
    }
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens > 42
    output = await sdk.asynchronous.files.retrieve(done.output_file_id or "")
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")


async def test_completions_and_embeddings(sdk: Sdk) -> None:
    for endpoint, body, taken in (
        ("/v1/completions", {"prompt": "Once"}, lambda body: body["choices"][0]["text"]),
        ("/v1/embeddings", {"input": ["a", "b"]}, lambda body: len(body["data"])),
    ):
        request = {"custom_id": "x", "method": "POST", "url": endpoint, "body": {"model": "base", **body}}
        done = await ended(sdk, (await submit(sdk, [request], endpoint=endpoint)).id)
        line = (await rows(sdk, done.output_file_id))["x"]
        assert taken(line["response"]["body"]) == {"/v1/completions": "base: Once", "/v1/embeddings": 2}[endpoint]


async def test_responses_are_kept_as_they_are_elsewhere(sdk: Sdk, services: Services) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "kept": {"input": "hello you", "instructions": "Be brief.", "metadata": {"run": "1"}},
        "left": {"input": [{"role": "user", "content": "other"}], "store": False},
        "wrong": {"input": "hello", "previous_response_id": "resp_none"},
        "odd": {"input": "hello", "foo": 1},
    }
    requests = [
        {"custom_id": name, "method": "POST", "url": "/v1/responses", "body": {"model": "base", **body}}
        for name, body in bodies.items()
    ]
    done = await ended(sdk, (await submit(sdk, requests, endpoint="/v1/responses")).id)
    answers = {name: line["response"]["body"] for name, line in (await rows(sdk, done.output_file_id)).items()}
    texts_ = {name: body["output"][0]["content"][0]["text"] for name, body in answers.items()}
    assert texts_ == {"kept": "base: hello you", "left": "base: other"}
    errors = await rows(sdk, done.error_file_id)
    codes = {name: line["response"]["body"]["error"]["code"] for name, line in errors.items()}
    assert codes == {"wrong": "previous_response_not_found", "odd": "unknown_parameter"}
    assert done.usage is not None
    assert done.usage.input_tokens == sum(body["usage"]["input_tokens"] for body in answers.values()) > 0
    assert done.usage.output_tokens == sum(body["usage"]["output_tokens"] for body in answers.values()) > 0
    kept = await sdk.asynchronous.responses.retrieve(answers["kept"]["id"])
    assert (kept.output_text, kept.metadata) == ("base: hello you", {"run": "1"})
    after = await sdk.asynchronous.responses.create(model="base", input="and?", previous_response_id=kept.id)
    assert after.previous_response_id == kept.id
    with pytest.raises(openai.NotFoundError, match="no response"):
        await sdk.asynchronous.responses.retrieve(answers["left"]["id"])


async def test_batches_are_paged_by_the_sdk(sdk: Sdk) -> None:
    ids = [(await submit(sdk, many(1))).id for _ in range(3)]
    assert [batch.id async for batch in sdk.asynchronous.batches.list(limit=2)] == ids[::-1]
    assert await asyncio.to_thread(lambda: [b.id for b in sdk.blocking.batches.list(limit=1)]) == ids[::-1]


async def test_who_waits_for_an_answer_goes_first(tmp_path: Path) -> None:
    services = make_services(tmp_path, ScriptedEngine(), max_sequences=1)
    engine = engine_of(services)
    engine.hold()
    async with openai_sdk(services) as sdk, at_work(services):
        batch = await submit(sdk, many(12))
        await engine.until(lambda e: len(e.requests) == 1)
        person = asyncio.create_task(
            sdk.asynchronous.chat.completions.create(model="base", messages=[{"role": "user", "content": "person"}])
        )
        await until(lambda: services.predictor.queued >= 1)
        engine.release()
        await person
        await ended(sdk, batch.id)
    asked = [r.prompt.messages[-1].content for r in engine.requests if isinstance(r, GenerateRequest)]
    assert asked[:2] == ["text 0", "person"]
    assert len(asked) == 13
    services.registry.close()


async def test_a_server_that_was_killed_goes_on_where_it_was(services: Services) -> None:
    engine = engine_of(services)
    async with openai_sdk(services) as sdk:
        first = batch_runner(services)
        await first.start()
        services.batches = first
        engine.answer = lambda request: (engine.hold(), "early")[1] if len(engine.requests) >= 30 else "early"
        batch = await submit(sdk, many(100))
        folder = await some_answered(services, batch)
        await first.stop()
        # As a kill in the middle of a write leaves it.
        whole = (folder / "output.jsonl").read_bytes().splitlines()
        with (folder / "output.jsonl").open("ab") as stream:
            stream.write(b'{"id": "batch_req_1", "custom_id": "r9')
        assert 0 < len(whole) < 100
        assert (await sdk.asynchronous.batches.retrieve(batch.id)).status == "in_progress"
        engine.requests.clear()
        engine.answer = lambda request: "late"
        engine.release()
        async with at_work(services):
            done = await ended(sdk, batch.id)
            answers = texts(await rows(sdk, done.output_file_id))
        assert len(engine.requests) == 100 - len(whole), "what was answered is not asked again"
        assert sorted(answers) == sorted(f"r{n}" for n in range(100))
        assert sum(text == "early" for text in answers.values()) == len(whole)
        assert done.request_counts is not None
        assert done.request_counts.completed == 100
        assert not folder.exists()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Services, Services]]:
    """Two servers of one registry with a store that both read. SQLite will do: they are in one process."""
    servers = [
        make_services(
            tmp_path / name,
            database_url=f"sqlite:///{tmp_path / 'registry.db'}",
            artefacts_url=(tmp_path / "shared").as_uri(),
        )
        for name in ("a", "b")
    ]
    yield servers[0], servers[1]
    for server in servers:
        server.registry.close()


async def test_servers_with_a_shared_store_take_each_others_files(pair: tuple[Services, Services]) -> None:
    first, second = pair
    async with openai_sdk(first) as one, openai_sdk(second) as other, at_work(first), at_work(second):
        lines = "".join(json.dumps(request) + "\n" for request in many(3)).encode()
        file = await one.asynchronous.files.create(file=("requests.jsonl", lines), purpose="batch")
        assert (await other.asynchronous.files.content(file.id)).content == lines
        batch = await other.asynchronous.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        done = await ended(one, batch.id)
        assert texts(await rows(one, done.output_file_id)) == {f"r{n}": f"base: text {n}" for n in range(3)}
        assert (len(engine_of(first).requests), len(engine_of(second).requests)) == (0, 3)
        await other.asynchronous.files.delete(done.output_file_id or "")
        with pytest.raises(openai.NotFoundError, match="no file"):
            await one.asynchronous.files.content(done.output_file_id or "")


async def test_a_batch_is_worked_on_by_one_server(pair: tuple[Services, Services]) -> None:
    first, second = pair
    async with openai_sdk(first) as one, openai_sdk(second) as other:
        # Neither was at work when it came, and one of them came from a release that did not say whose it is.
        mine, theirs, nobodys = [await submit(sdk, many(2)) for sdk in (one, other, other)]
        registry = first.registry
        data = registry.documents.get("batch", nobodys.id).data
        registry.documents.remove("batch", nobodys.id)
        unclaimed = {name: value for name, value in data.items() if name != "server"}
        registry.documents.add("batch", unclaimed, identity=nobodys.id)
        async with at_work(first), at_work(second):
            for batch in (mine, theirs, nobodys):
                assert (await ended(one, batch.id)).status == "completed"
    assert (len(engine_of(first).requests), len(engine_of(second).requests)) == (4, 2)


@asynccontextmanager
async def taking_over(services: Services, runner: BatchRunner) -> AsyncIterator[None]:
    """What takes over the batches of servers that are gone, without much patience."""
    looking = asyncio.create_task(BatchTakeover(services.registry, runner.begin, gone=0.2).run())
    yield
    looking.cancel()


async def test_a_batch_whose_server_is_gone_is_answered_by_another(pair: tuple[Services, Services]) -> None:
    first, second = pair
    engine = engine_of(first)
    engine.answer = lambda request: (engine.hold(), "early")[1]
    async with openai_sdk(first) as one, openai_sdk(second) as other:
        async with at_work(first):
            batch = await submit(one, many(60))
            left = await some_answered(first, batch)
        async with at_work(second) as runner, taking_over(second, runner):
            done = await ended(other, batch.id)
        assert done.status == "completed"
        assert texts(await rows(other, done.output_file_id)) == {f"r{n}": f"base: text {n}" for n in range(60)}
        engine.requests.clear()
        async with at_work(first):
            assert not left.exists()
            assert (await one.asynchronous.batches.retrieve(batch.id)).output_file_id == done.output_file_id
        assert engine.requests == []


async def test_a_batch_whose_server_is_there_stays_with_it(
    pair: tuple[Services, Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    engine_of(first).hold()
    first.registry.report_in_flight(set())
    async with openai_sdk(first) as one, at_work(first), at_work(second) as runner:
        batch = await submit(one, many(3))
        looks = Counter[str]()
        others = second.registry.other_servers

        def counted() -> set[str]:
            looks["all"] += 1
            return others()

        monkeypatch.setattr(second.registry, "other_servers", counted)
        async with taking_over(second, runner):
            await until(lambda: looks["all"] > 10)
        engine_of(first).release()
        assert (await ended(one, batch.id)).status == "completed"
    assert (len(engine_of(first).requests), len(engine_of(second).requests)) == (3, 0)


async def test_a_server_that_was_cut_off_lets_a_batch_go_that_was_taken(
    pair: tuple[Services, Services],
) -> None:
    first, second = pair
    engine = engine_of(first)
    engine.answer = lambda request: (engine.hold(), "early")[1]
    async with openai_sdk(first) as one, at_work(first), at_work(second) as runner:
        batch = await submit(one, many(200))
        folder = await some_answered(first, batch)
        async with taking_over(second, runner):
            done = await ended(one, batch.id)
        engine.answer = lambda request: "late"
        engine.release()
        await until(lambda: not folder.exists())
        assert (done.status, len(await rows(one, done.output_file_id))) == ("completed", 200)
        assert await one.asynchronous.batches.retrieve(batch.id) == done
        files = await one.asynchronous.files.list(purpose="batch_output")
        assert [file.id for file in files.data] == [done.output_file_id]


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not-stored"])
async def test_a_batch_whose_server_is_gone_at_its_end(
    pair: tuple[Services, Services], monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """With both files stored only the last word is missing; with one of them all has to be asked again."""
    first, second = pair
    add, ending = first.registry.kept_files.add, threading.Event()

    def gone(source: Path, **named: Any) -> Any:
        if source.name != "errors.jsonl":
            return add(source, **named)
        if stored:
            add(source, **named)
        ending.set()
        raise StoreUnavailableError("s3://bucket", "it does not answer")

    monkeypatch.setattr(first.registry.kept_files, "add", gone)
    requests = [*many(3), ask("nobody", model="nobody")]
    async with openai_sdk(first) as one:
        async with at_work(first):
            batch = await submit(one, requests)
            await until(ending.is_set)
        async with at_work(second) as runner, taking_over(second, runner):
            done = await ended(one, batch.id)
        assert done.status == "completed"
        assert len(await rows(one, done.output_file_id)) == 3
        assert list(await rows(one, done.error_file_id)) == ["nobody"]
        files = await one.asynchronous.files.list(purpose="batch_output")
        assert {file.id for file in files.data} == {done.output_file_id, done.error_file_id}
    assert len(engine_of(second).requests) == (0 if stored else 3)


async def test_a_batch_that_another_server_is_told_to_end_ends(services: Services) -> None:
    engine_of(services).answer = lambda request: time.sleep(0.02) or "slow"
    async with openai_sdk(services) as sdk, at_work(services) as runner:
        busy = await submit(sdk, many(400))
        await batch_stands(sdk, busy.id, lambda b: b.status == "in_progress")
        services.batches = None
        await sdk.asynchronous.batches.cancel(busy.id)
        assert (await ended(sdk, busy.id)).status == "cancelled"
        services.batches = runner


async def test_a_batch_without_answers_ends_where_another_server_is_told_to_end_it(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_LOOK", 0.05)
    engine_of(services).hold()
    async with openai_sdk(services) as sdk, at_work(services) as runner:
        waiting = await submit(sdk, many(3))
        await batch_stands(sdk, waiting.id, lambda b: b.status == "in_progress")
        services.batches = None
        await sdk.asynchronous.batches.cancel(waiting.id)
        assert (await ended(sdk, waiting.id)).status == "cancelled"
        services.batches = runner


async def test_without_a_shared_store_files_stay_with_their_server(services: Services, tmp_path: Path) -> None:
    database = f"sqlite:///{services.settings.data_dir / 'registry.db'}"
    another = make_services(tmp_path / "another", database_url=database)
    async with openai_sdk(services) as sdk, openai_sdk(another) as elsewhere, at_work(another):
        batch = await submit(sdk, many(2))
        for ask_there in (
            elsewhere.asynchronous.files.content(batch.input_file_id),
            elsewhere.asynchronous.batches.create(
                input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"
            ),
        ):
            with pytest.raises(openai.BadRequestError, match="lies with another server"):
                await ask_there
        assert (await elsewhere.asynchronous.batches.retrieve(batch.id)).status == "validating"
        async with at_work(services):
            assert (await ended(elsewhere, batch.id)).status == "completed"
    another.registry.close()


async def test_a_batch_waits_for_a_store_that_is_away(
    sdk: Sdk, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "_FIRST_PAUSE", 0.05)
    add, tries = services.registry.kept_files.add, []

    def away(*args: Any, **kwargs: Any) -> Any:
        tries.append(kwargs["filename"])
        if kwargs["purpose"] == "batch_output" and len(tries) < 4:
            raise StoreUnavailableError("s3://bucket", "it does not answer")
        return add(*args, **kwargs)

    monkeypatch.setattr(services.registry.kept_files, "add", away)
    done = await ended(sdk, (await submit(sdk, many(2))).id)
    assert (done.status, len(tries)) == ("completed", 4)
    assert len(await rows(sdk, done.output_file_id)) == 2


@pytest.mark.parametrize("code", ["artefacts-unavailable", "storage-full"])
async def test_requests_wait_for_the_files_of_their_adapter(
    sdk: Sdk, services: Services, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    asked, complete = [], batch_calls.complete

    async def away_at_first(services: Services, body: Any, terms: Any) -> Any:
        asked.append(body)
        if len(asked) < 4:
            raise ProblemError(code, "not now", retry_after=0.05)
        return await complete(services, body, terms)

    monkeypatch.setattr(batch_calls, "complete", away_at_first)
    done = await ended(sdk, (await submit(sdk, many(2))).id)
    assert (done.status, done.request_counts and done.request_counts.failed) == ("completed", 0)


async def test_answers_wait_for_room(sdk: Sdk, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_ROOM", 0.05)
    add, edit, full = PartialResults.add, services.registry.documents.edit, Counter[str]()

    def full_at_first(results: PartialResults, result: dict[str, Any]) -> None:
        full["answers"] += 1
        if full["answers"] in (2, 3, 4):
            raise OSError(errno.ENOSPC, "No space left on device")
        add(results, result)

    def no_note_at_first(kind: str, *arguments: Any) -> Any:
        full["notes"] += 1
        if full["notes"] in (2, 3):
            raise StorageFullError("registry.db")
        return edit(kind, *arguments)

    monkeypatch.setattr(PartialResults, "add", full_at_first)
    monkeypatch.setattr(services.registry.documents, "edit", no_note_at_first)
    done = await ended(sdk, (await submit(sdk, many(5))).id)
    assert (done.status, len(await rows(sdk, done.output_file_id))) == ("completed", 5)
    assert (full["answers"], full["notes"] > 3) == (8, True)


async def test_the_results_of_a_batch_wait_for_room(
    sdk: Sdk, services: Services, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batches, "_ROOM", 0.05)
    add, tries = services.registry.kept_files.add, []

    def full_at_first(*args: Any, **kwargs: Any) -> Any:
        if kwargs["purpose"] == "batch_output":
            tries.append(kwargs["filename"])
            if len(tries) < 4:
                raise StorageFullError("data")
        return add(*args, **kwargs)

    monkeypatch.setattr(services.registry.kept_files, "add", full_at_first)
    done = await ended(sdk, (await submit(sdk, many(2))).id)
    assert (done.status, len(tries)) == ("completed", 4)
    assert len(await rows(sdk, done.output_file_id)) == 2
    assert "waits: no space is left" in caplog.text


async def test_a_batch_whose_end_was_cut_off_ends_with_the_same_files(services: Services) -> None:
    async with openai_sdk(services) as sdk, at_work(services):
        done = await ended(sdk, (await submit(sdk, many(3))).id)
    content = services.registry.kept_files.stored(done.output_file_id or "").content.read_bytes()
    # Once before the file was stored, and once after.
    for stored in (False, True):
        folder = services.settings.data_dir / "batches" / done.id
        folder.mkdir()
        (folder / "output.jsonl").write_bytes(content)
        (folder / "errors.jsonl").write_bytes(b"")
        if not stored:
            services.registry.kept_files.remove(done.output_file_id or "")
        services.registry.documents.update("batch", done.id, status="finalizing")
        async with openai_sdk(services) as sdk, at_work(services):
            again = await ended(sdk, done.id)
            assert again.output_file_id == done.output_file_id
            assert (await sdk.asynchronous.files.content(done.output_file_id or "")).content == content


async def test_a_cancelled_batch_keeps_what_was_answered(sdk: Sdk, services: Services) -> None:
    engine = engine_of(services)
    engine.answer = lambda request: (engine.hold(), "ok")[1]
    batch = await submit(sdk, many(200))
    await some_answered(services, batch)
    cancelling = await sdk.asynchronous.batches.cancel(batch.id)
    assert cancelling.status == "cancelling"
    done = await ended(sdk, batch.id)
    assert (done.status, done.cancelled_at is not None) == ("cancelled", True)
    assert 0 < len(await rows(sdk, done.output_file_id)) < 200
    assert not engine.running
    with pytest.raises(openai.BadRequestError, match="is cancelled and can't be cancelled"):
        await sdk.asynchronous.batches.cancel(batch.id)


async def test_a_batch_that_was_to_end_while_no_server_ran(services: Services) -> None:
    async with openai_sdk(services) as sdk:
        batch = await submit(sdk, many(2))
        await sdk.asynchronous.batches.cancel(batch.id)
        async with at_work(services):
            done = await ended(sdk, batch.id)
        assert (done.status, done.output_file_id, engine_of(services).requests) == ("cancelled", None, [])


async def test_a_batch_that_waits_for_its_turn_can_be_cancelled(sdk: Sdk, services: Services) -> None:
    engine_of(services).hold()
    before = [await submit(sdk, many(1)) for _ in range(8)]
    waiting = await submit(sdk, many(1))
    await batch_stands(sdk, waiting.id, lambda b: b.status == "in_progress")
    await sdk.asynchronous.batches.cancel(waiting.id)
    assert (await ended(sdk, waiting.id)).status == "cancelled"
    engine_of(services).release()
    assert {(await ended(sdk, batch.id)).status for batch in before} == {"completed"}


async def test_a_batch_expires_and_says_so_of_each_request_that_is_left(sdk: Sdk, services: Services) -> None:
    engine_of(services).hold()
    done = await ended(sdk, (await submit(sdk, many(3), window="1s")).id)
    assert (done.status, done.output_file_id) == ("expired", None)
    errors = await rows(sdk, done.error_file_id)
    assert {line["error"]["code"] for line in errors.values()} == {"batch_expired"}
    assert sorted(errors) == ["r0", "r1", "r2"]


async def test_what_was_answered_before_a_batch_expired_is_kept(services: Services) -> None:
    engine = engine_of(services)
    engine.answer = lambda request: (engine.hold(), "ok")[1]
    async with openai_sdk(services) as sdk:
        async with at_work(services):
            batch = await submit(sdk, many(200))
            await some_answered(services, batch)
        services.registry.documents.update("batch", batch.id, expires_at=int(time.time()) - 1)
        async with at_work(services):
            done = await ended(sdk, batch.id)
        assert (done.status, done.expired_at is not None) == ("expired", True)
        answers, errors = await rows(sdk, done.output_file_id), await rows(sdk, done.error_file_id)
    assert (len(answers) > 0, len(errors) > 0) == (True, True)
    assert sorted([*answers, *errors]) == sorted(f"r{n}" for n in range(200))
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 200, "completed": len(answers), "failed": len(errors)}


async def test_a_batch_that_fails_keeps_what_was_answered(
    sdk: Sdk, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = PartialResults.add

    def until_broken(results: PartialResults, result: dict[str, Any]) -> None:
        if len(results.done) == 4:
            raise OSError(errno.EIO, "Input/output error")
        add(results, result)

    monkeypatch.setattr(PartialResults, "add", until_broken)
    engine_of(services).hold()
    batch = await submit(sdk, [ask("nobody", model="none"), *many(30)])
    # What can't be asked is among what was answered.
    refusals = services.settings.data_dir / "batches" / batch.id / "errors.jsonl"
    await until(lambda: refusals.exists() and refusals.stat().st_size > 0)
    engine_of(services).release()
    failed = await ended(sdk, batch.id)
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert (failed.status, failed.failed_at is not None) == ("failed", True)
    assert [fault.code for fault in failed.errors.data] == ["internal"]
    answers, errors = await rows(sdk, failed.output_file_id), await rows(sdk, failed.error_file_id)
    assert failed.request_counts is not None
    assert failed.request_counts.to_dict() == {"total": 31, "completed": len(answers), "failed": len(errors)}
    assert len(answers) + len(errors) == 4
    assert "nobody" in errors
    assert not (services.settings.data_dir / "batches" / failed.id).exists()


async def test_a_full_queue_and_an_engine_that_is_away_only_take_longer(tmp_path: Path) -> None:
    services = make_services(tmp_path, ScriptedEngine(), max_queued=2, max_queued_per_adapter=2, max_sequences=2)
    engine_of(services).hold()
    async with openai_sdk(services) as sdk, at_work(services):
        # Two people are answered, two wait: for the batch there is no place in the queue.
        people = [
            asyncio.create_task(
                sdk.asynchronous.chat.completions.create(model="base", messages=[{"role": "user", "content": "x"}])
            )
            for _ in range(4)
        ]
        await until(lambda: services.predictor.queued >= 2)
        batch = await submit(sdk, many(4))
        await batch_stands(sdk, batch.id, lambda b: b.status == "in_progress")
        engine_of(services).release()
        await asyncio.gather(*people)
        done = await ended(sdk, batch.id)
        assert done.request_counts is not None
        assert done.request_counts.to_dict() == {"total": 4, "completed": 4, "failed": 0}
    services.registry.close()


async def test_a_batch_that_no_request_of_can_be_asked(sdk: Sdk) -> None:
    failed = await ended(sdk, (await submit(sdk, many(2), endpoint="/v1/completions")).id)
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert (failed.status, len(failed.errors.data)) == ("failed", 2)
    assert failed.errors.data[1].to_dict() == {
        "code": "mismatched_endpoint",
        "message": "the request is for /v1/chat/completions, the batch for /v1/completions",
        "line": 2,
        "param": "url",
    }


async def test_what_no_batch_can_be(sdk: Sdk, services: Services) -> None:
    with pytest.raises(openai.NotFoundError, match="no file 'file-none'"):
        await sdk.asynchronous.batches.create(input_file_id="file-none", endpoint=CHAT, completion_window="24h")
    with pytest.raises(openai.BadRequestError, match="completion_window"):
        await submit(sdk, many(1), window="tomorrow")
    with pytest.raises(openai.BadRequestError, match="endpoint"):
        await submit(sdk, many(1), endpoint="/v1/moderations")
    with pytest.raises(openai.NotFoundError, match="no batch"):
        await sdk.asynchronous.batches.retrieve("batch_none")
    chat = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    file = await sdk.asynchronous.files.create(file=("a.jsonl", chat), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="was uploaded for 'fine-tune'"):
        await sdk.asynchronous.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    engine_of(services).hold()
    batch = await submit(sdk, many(1))
    with pytest.raises(openai.BadRequestError, match=f"in use by batch '{batch.id}'"):
        await sdk.asynchronous.files.delete(batch.input_file_id)


async def test_a_batch_sees_what_its_key_sees_and_ends_with_it(services: Services, tmp_path: Path) -> None:
    publish(services, tmp_path, "acme.de", state={"target_language": "de"})
    publish(services, tmp_path, "other.de", state={"target_language": "de"})
    services.registry.create_key("root", ["admin"])
    record, acme = services.registry.create_key("a", ["query"], tenant="acme")
    _, other = services.registry.create_key("b", ["query"], tenant="other")
    services.keyring.changed()
    async with (
        openai_sdk(services, api_key=acme) as sdk,
        openai_sdk(services, api_key=other) as stranger,
        at_work(services),
    ):
        batch = await submit(sdk, [ask("own", model="acme.de"), ask("foreign", model="other.de")])
        done = await ended(sdk, batch.id)
        assert texts(await rows(sdk, done.output_file_id)) == {"own": "acme.de@1: hello"}
        assert (await rows(sdk, done.error_file_id))["foreign"]["response"]["status_code"] == 404
        assert (await stranger.asynchronous.batches.list()).data == []
        for touch in (stranger.asynchronous.batches.retrieve, stranger.asynchronous.batches.cancel):
            with pytest.raises(openai.NotFoundError, match="no batch"):
                await touch(batch.id)
        with pytest.raises(openai.NotFoundError, match="no file"):
            await stranger.asynchronous.files.content(done.output_file_id or "")
        engine = engine_of(services)
        engine.answer = lambda request: (engine.hold(), "ok")[1]
        running = await submit(sdk, many(200))
        await some_answered(services, running)
        services.registry.revoke_key(record.id)
        await until(lambda: services.registry.documents.get("batch", running.id).data["status"] == "failed")
        _, later = services.registry.create_key("c", ["query"], tenant="acme")
        services.keyring.changed()
        # What was answered is the tenant's, who may have another key.
        async with openai_sdk(services, api_key=later) as again:
            failed = await again.asynchronous.batches.retrieve(running.id)
            assert failed.errors is not None
            assert failed.errors.data is not None
            assert failed.errors.data[0].code == "unauthorized"
            assert "revoked" in (failed.errors.data[0].message or "")
            assert 0 < len(await rows(again, failed.output_file_id)) < 200
        with pytest.raises(openai.NotFoundError, match="no file"):
            await stranger.asynchronous.files.content(failed.output_file_id or "")


async def test_a_batch_that_waits_for_its_keys_limit_takes_no_place(tmp_path: Path) -> None:
    services = make_services(tmp_path, max_sequences=2)
    root = services.registry.create_key("root", ["admin"])[1]
    limits = Limits(requests_per_minute=1)
    slow = services.registry.create_key("slow", ["query"], tenant="acme", limits=limits)[1]
    services.keyring.changed()
    async with (
        openai_sdk(services, api_key=slow) as limited,
        openai_sdk(services, api_key=root) as sdk,
        at_work(services),
    ):
        waiting = await submit(limited, many(20))
        await some_answered(services, waiting)
        assert (await ended(sdk, (await submit(sdk, many(3))).id)).status == "completed"
        assert (await limited.asynchronous.batches.retrieve(waiting.id)).status == "in_progress"
    services.registry.close()


async def test_a_batch_goes_on_at_the_pace_of_its_keys_limit(services: Services) -> None:
    services.registry.create_key("root", ["admin"])
    limits = Limits(requests_per_minute=120)
    key = services.registry.create_key("web", ["query"], limits=limits)[1]
    async with openai_sdk(services, api_key=key) as sdk, at_work(services):
        started = time.monotonic()
        batch = await submit(sdk, many(123))
        done = await ended(sdk, batch.id)
        assert done.request_counts is not None
        assert (done.request_counts.completed, done.request_counts.failed) == (123, 0)
        assert time.monotonic() - started > 1.4
