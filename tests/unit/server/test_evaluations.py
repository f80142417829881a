"""Evaluations over HTTP: both sides on the same rows, held-out rows only, live progress."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_server.registry.records import Lineage
from graft_server.services import Services
from graft_server.serving.evaluator import Subject, unpublished_source
from graft_server.serving.job_results import JobResults
from graft_server.training.options import resolve_options
from support.scripted_engine import FINGERPRINT, last_words
from support.serving import adapter_files, engine_of, in_memory, make_services, ndjson, on_socket, parts, publish

ROWS = [{"source": f"{word} lamp", "target": f"{word} Lampe"} for word in ("red", "green", "blue", "old", "new")]


async def store(client: httpx.AsyncClient, rows: list[dict[str, Any]], task: str = "translation") -> str:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    response = await client.post("/api/datasets", data={"task": task}, files=parts({"rows.jsonl": content}))
    assert response.status_code == 201, response.text
    return response.json()["id"]


async def evaluate(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await client.post("/api/evaluations", json=body)
    assert response.status_code == 200, response.text
    return ndjson(response.text)


async def test_adapter_and_base_are_measured_on_the_same_rows(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de")
    engine_of(services).answer = lambda request: (
        last_words(request.prompt).replace("lamp", "Lampe") if request.adapter else "something else"
    )
    lines = await evaluate(client, adapter="de", dataset=await store(client, ROWS), against="base")
    counts = [line["done"] for line in lines]
    assert counts == sorted(counts)
    assert lines[-1]["done"] == lines[-1]["total"] == 10
    assert (lines[-1]["adapter"], lines[-1]["against"]) == ("de@1", "base")
    summary = lines[-1]["summary"]
    assert summary["adapter"]["metrics"]["chrf"]["value"] == pytest.approx(100)
    assert summary["base"]["metrics"]["chrf"]["value"] < 30
    assert summary["adapter"]["rows"] == summary["base"]["rows"] == 5
    assert summary["adapter"]["metrics"]["chrf"]["signature"]


async def test_the_rows_an_adapter_was_trained_on_are_left_out(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    words = [f"word{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(60)]
    dataset = await store(client, [{"source": word, "target": word.upper()} for word in words])
    task = services.host.task("translation")
    options = resolve_options(task, services.host.method("lora"), {"eval_rows": 7, "seed": 3}).flat
    folder = tmp_path / "trained"
    folder.mkdir()
    for name, content in adapter_files().items():
        (folder / name).write_bytes(content)
    lineage = Lineage(task=task.name, method="lora", base_model="tiny", base_fingerprint=FINGERPRINT, rank=8)
    services.registry.publish("de", folder, replace(lineage, dataset=dataset, options=options))
    lines = await evaluate(client, adapter="de", dataset=dataset)
    assert lines[-1]["summary"]["adapter"]["rows"] == 7
    examples = [task.parse_row({"source": word, "target": word.upper()}) for word in words]
    held_out = {example.source for example in task.split(examples, test_rows=7, seed=3).test}
    assert {last_words(request.prompt) for request in engine_of(services).requests} == held_out


async def test_both_are_measured_on_rows_that_are_new_to_both(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    rows = [{"source": f"word {chr(97 + n // 26)}{chr(97 + n % 26)}", "target": "X"} for n in range(100)]
    dataset, task = await store(client, rows), services.host.task("translation")
    trained: set[str] = set()
    for seed in (1, 2):
        resolved = resolve_options(task, services.host.method("lora"), {"eval_rows": 60, "seed": seed})
        options, wanted = resolved.flat, resolved.training.test_rows(len(rows))
        folder = tmp_path / f"trained-{seed}"
        folder.mkdir()
        for name, content in adapter_files(note=seed).items():
            (folder / name).write_bytes(content)
        lineage = Lineage(task=task.name, method="lora", base_model="tiny", base_fingerprint=FINGERPRINT, rank=8)
        services.registry.publish("de", folder, replace(lineage, dataset=dataset, options=options))
        split = task.split([task.parse_row(row) for row in rows], test_rows=wanted, seed=seed)
        trained |= {example.source for example in split.train}
    lines = await evaluate(client, adapter="de@2", dataset=dataset, against="de@1")
    assert lines[-1]["summary"]["adapter"]["rows"] == 100 - len(trained) > 0
    assert not trained & {last_words(request.prompt) for request in engine_of(services).requests}


async def test_the_base_model_alone_takes_the_datasets_task(client: httpx.AsyncClient) -> None:
    lines = await evaluate(client, adapter="base", dataset=await store(client, ROWS), limit=2)
    assert lines[-1]["adapter"] == "base"
    assert lines[-1]["summary"]["adapter"]["rows"] == 2


async def test_rows_that_can_not_be_asked_are_left_out_on_both_sides(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de")
    rows = [*ROWS, {"source": "long " * 2000, "target": "x"}]
    lines = await evaluate(client, adapter="de", dataset=await store(client, rows), against="base")
    summary = lines[-1]["summary"]
    assert summary["adapter"]["rows"] == summary["base"]["rows"] == 5


async def test_an_engine_that_dies_ends_it_with_a_problem(client: httpx.AsyncClient, services: Services) -> None:
    engine_of(services).die()
    lines = await evaluate(client, adapter="base", dataset=await store(client, ROWS))
    assert lines[-1]["problem"]["code"] == "engine-died"
    assert "summary" not in lines[-1]


async def test_a_dataset_of_another_task_is_a_conflict(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    publish(services, tmp_path, "talk", "chat")
    body = {"adapter": "talk", "dataset": await store(client, ROWS)}
    response = await client.post("/api/evaluations", json=body)
    assert (response.status_code, response.json()["code"]) == (409, "conflict")


async def test_a_caller_that_hangs_up_ends_the_evaluation(client: httpx.AsyncClient, services: Services) -> None:
    dataset = await store(client, ROWS)
    engine = engine_of(services)
    engine.hold()
    async with on_socket(services) as (socket_client, _):
        body = {"adapter": "base", "dataset": dataset}
        calling = asyncio.create_task(socket_client.post("/api/evaluations", json=body))
        await engine.until(lambda engine: len(engine.running) == 5)
        calling.cancel()
        await engine.until(lambda engine: not engine.running)
    assert len(engine.aborted) == 5


async def test_an_evaluation_waits_in_the_background_and_outlasts_a_full_queue(tmp_path: Path) -> None:
    services = make_services(tmp_path, max_sequences=2, max_queued=1)
    engine = engine_of(services)
    engine.hold()
    task = services.host.task("translation")
    subject = Subject(None, task.state_model())
    examples = [task.parse_row(row) for row in ROWS]
    async with in_memory(services) as client:
        people = [asyncio.create_task(client.post("/api/predict", json={"adapter": "base", "text": "hello"}))]
        await engine.until(lambda engine: len(engine.running) == 1)
        measuring = asyncio.create_task(services.evaluator.measure(task, examples, {"base": subject}))
        await engine.until(lambda engine: len(engine.running) == 2)
        while services.predictor.queued < 1:
            await asyncio.sleep(0.005)
        full = await client.post("/api/predict", json={"adapter": "base", "text": "hello"})
        assert full.json()["code"] == "overloaded"
        engine.release()
        assert (await people[0]).status_code == 200
        assert (await measuring)["base"].rows == 5
    services.registry.close()


async def test_a_result_that_is_not_published_is_measured_beside_the_base_and_unloaded(services: Services) -> None:
    engine = engine_of(services)
    engine.answer = lambda request: "red Lampe" if request.adapter else "a red lamp"
    task = services.host.task("translation")
    examples = [task.parse_row(row) for row in ROWS[:1]]
    source = unpublished_source(ref="job", path="/nowhere", method="lora", rank=8)
    seen: list[tuple[int, int]] = []
    summary = await services.evaluator.compare_with_base(
        task, examples, task.state_model(), source, lambda done, total: seen.append((done, total))
    )
    assert summary.adapter.score == pytest.approx(100)
    assert summary.base is not None
    assert summary.base.score < 80
    assert seen == [(1, 2), (2, 2)]
    assert engine.unloaded == [source.engine_id]
    another = unpublished_source(ref="job", path="/nowhere", method="lora", rank=8)
    assert another.engine_id != source.engine_id


async def test_a_jobs_result_is_measured_from_its_files(services: Services, tmp_path: Path) -> None:
    engine = engine_of(services)
    engine.answer = lambda request: "red Lampe" if request.adapter else "a red lamp"
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    registry, task = services.registry, services.host.task("translation")
    dataset = registry.add_dataset(task=task.name, format="jsonl", rows=1, bad_rows=0, folder=rows)
    job = registry.create_job(task=task.name, adapter="de", dataset=dataset.id, method="lora", options={})
    folder = tmp_path / "result"
    folder.mkdir()
    for name, content in adapter_files(state={"target_language": "de"}).items():
        (folder / name).write_bytes(content)
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(task.parse_row(ROWS[0]).model_dump_json() + "\n")
    results = JobResults(services.host, services.evaluator)
    summary = await results.evaluate(job, folder, held_out, lambda done, total: None)
    assert summary.adapter.score == pytest.approx(100)
    adapters = [request.adapter for request in engine.requests]
    [source] = [adapter for adapter in adapters if adapter]
    assert (source.path, source.method, source.rank) == (str(folder), "lora", 8)
    assert engine.requests[0].prompt.messages[0].content == "Translate to German."
    assert engine.unloaded == [source.engine_id]
