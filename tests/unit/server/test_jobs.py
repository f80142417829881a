"""Jobs over HTTP: what is refused before it is queued, and following one that runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_client.schemas.jobs import JobState
from graft_client.schemas.routes import RouteSpec
from graft_server.registry.jobs import append_event
from graft_server.services import Services
from support.serving import RecordedJobs, engine_of, on_socket, parts, publish, sse

ROWS = b"".join(json.dumps({"source": f"text {n}", "target": f"Text {n}"}).encode() + b"\n" for n in range(10))


@pytest.fixture
async def dataset(client: httpx.AsyncClient) -> str:
    response = await client.post("/api/datasets", data={"task": "translation"}, files=parts({"rows.jsonl": ROWS}))
    return response.json()["id"]


async def submit(client: httpx.AsyncClient, dataset: str, **body: Any) -> httpx.Response:
    return await client.post("/api/jobs", json={"task": "translation", "dataset": dataset, "adapter": "de", **body})


def recorded(services: Services) -> RecordedJobs:
    assert isinstance(services.jobs, RecordedJobs)
    return services.jobs


async def test_a_job_is_queued_with_every_option_in_force(
    client: httpx.AsyncClient, services: Services, dataset: str
) -> None:
    response = await submit(client, dataset, options={"epochs": 2, "r": 4})
    assert response.status_code == 201, response.text
    job = response.json()
    assert (job["state"], job["method"], job["adapter"]) == ("queued", "lora", "de")
    assert (job["options"]["epochs"], job["options"]["r"]) == (2, 4)
    assert "learning_rate" in job["options"]
    assert recorded(services).woken == 1
    assert (await client.get(f"/api/jobs/{job['id']}")).json() == job
    assert [each["id"] for each in (await client.get("/api/jobs?state=queued")).json()] == [job["id"]]
    assert (await client.get("/api/jobs?state=failed")).json() == []


async def test_jobs_can_be_queued_while_the_engine_sleeps_for_another(
    client: httpx.AsyncClient, services: Services, dataset: str
) -> None:
    await engine_of(services).sleep()
    ready = await client.get("/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"status": "asleep", "detail": "a job has the device"})
    assert (await submit(client, dataset)).status_code == 201
    evaluation = await client.post("/api/evaluations", json={"adapter": "de", "dataset": dataset})
    assert evaluation.json()["code"] == "not-ready", evaluation.text
    assert "a job has the device" in evaluation.json()["detail"]
    assert (await client.get("/api/status")).json()["engine"]["state"] == "asleep"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"task": "translatio"}, 404, "unknown-task"),
        ({"task": "chat"}, 409, "conflict"),
        ({"dataset": "nothing"}, 404, "unknown-dataset"),
        ({"adapter": "base"}, 422, "invalid-name"),
        ({"adapter": "A B"}, 422, "invalid-name"),
        ({"adapter": "films"}, 409, "conflict"),
        ({"method": "lor"}, 422, "unknown-method"),
        ({"method": "dora"}, 422, "unservable"),
        ({"options": {"r": 33}}, 422, "unservable"),
        ({"options": {"epoch": 2}}, 422, "unknown-option"),
        ({"options": {"epochs": "many"}}, 422, "invalid-option"),
        ({"steps": 3}, 422, "invalid-request"),
    ],
)
async def test_what_could_only_fail_is_refused_now(
    client: httpx.AsyncClient,
    services: Services,
    tmp_path: Path,
    dataset: str,
    change: dict[str, Any],
    status: int,
    code: str,
) -> None:
    publish(services, tmp_path, "films", "recommendation", state={"catalogue": ["Heat"]})
    response = await submit(client, change.pop("dataset", dataset), **change)
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert services.registry.jobs() == []


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"task": "translatio"}, 404, "unknown-task"),
        ({"adapter": "base"}, 422, "invalid-name"),
        ({"method": "dora"}, 422, "unservable"),
        ({"options": {"epoch": 2}}, 422, "unknown-option"),
        ({"options": {"r": 33}}, 422, "unservable"),
        ({"dataset": "x"}, 422, "invalid-request"),
    ],
)
async def test_a_plan_is_refused_before_there_is_a_dataset(
    client: httpx.AsyncClient, services: Services, change: dict[str, Any], status: int, code: str
) -> None:
    plan = {"task": "translation", "adapter": "de", "options": {"epochs": 2}}
    taken = await client.post("/api/jobs/check", json=plan)
    assert (taken.status_code, taken.json()["options"]["epochs"]) == (200, 2)
    assert "learning_rate" in taken.json()["options"]
    refused = await client.post("/api/jobs/check", json=plan | change)
    assert (refused.status_code, refused.json()["code"]) == (status, code), refused.text
    assert services.registry.jobs() == []


async def test_an_unknown_option_is_told_with_the_nearest(client: httpx.AsyncClient, dataset: str) -> None:
    response = await submit(client, dataset, options={"epoch": 2})
    assert response.json()["nearest"] == "epochs"


async def test_before_the_engine_is_up_no_job_is_taken(
    client: httpx.AsyncClient, services: Services, dataset: str
) -> None:
    engine_of(services).state = "starting"
    response = await submit(client, dataset)
    assert (response.status_code, response.json()["code"]) == (503, "not-ready")


async def test_a_cancelled_job_can_be_resumed(client: httpx.AsyncClient, services: Services, dataset: str) -> None:
    job = (await submit(client, dataset)).json()["id"]
    response = await client.post(f"/api/jobs/{job}/resume")
    assert (response.status_code, response.json()["code"]) == (409, "conflict")
    assert (await client.post(f"/api/jobs/{job}/cancel")).json()["state"] == "cancelled"
    assert recorded(services).cancelled == [job]
    assert (await client.post(f"/api/jobs/{job}/resume")).json()["state"] == "queued"


async def test_events_are_numbered_and_can_be_read_on_from(
    client: httpx.AsyncClient, services: Services, dataset: str
) -> None:
    job = (await submit(client, dataset)).json()["id"]
    for step in range(3):
        services.registry.add_event(job, "metrics", {"step": step})
    url = f"/api/jobs/{job}/events"
    events = sse((await client.get(f"{url}?follow=false")).text)
    numbers = [int(event["id"]) for event in events]
    assert numbers == sorted(set(numbers))
    assert [event["event"] for event in events[-3:]] == ["metrics"] * 3
    assert json.loads(events[-1]["data"])["data"] == {"step": 2}
    rest = sse((await client.get(f"{url}?follow=false&after={numbers[-2]}")).text)
    assert rest == events[-1:]
    rest = sse((await client.get(f"{url}?follow=false", headers={"last-event-id": str(numbers[-2])})).text)
    assert rest == events[-1:]
    assert (await client.get("/api/jobs/nothing/events")).status_code == 404


async def test_a_long_history_is_told_to_its_end(client: httpx.AsyncClient, services: Services, dataset: str) -> None:
    job = (await submit(client, dataset)).json()["id"]
    with services.registry._job(job) as (session, row):
        for step in range(2100):
            append_event(session, row, "metrics", {"step": step})
    await client.post(f"/api/jobs/{job}/cancel")
    events = sse((await client.get(f"/api/jobs/{job}/events")).text)
    assert len(events) == 2102
    assert json.loads(events[-1]["data"])["data"]["state"] == "cancelled"


async def test_a_route_has_its_name_for_itself(
    client: httpx.AsyncClient, services: Services, dataset: str, tmp_path: Path
) -> None:
    publish(services, tmp_path, "de")
    spec = RouteSpec.model_validate({"targets": [{"ref": "de@1", "weight": 100}]})
    services.registry.routes.set("prod", spec, who="me")
    for refused in (
        await submit(client, dataset, adapter="prod"),
        await client.post("/api/jobs/check", json={"task": "translation", "adapter": "prod"}),
    ):
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict"), refused.text
        assert "'prod' is a route" in refused.json()["detail"]


async def test_a_job_whose_validation_rows_are_gone_is_not_resumed(client: httpx.AsyncClient, dataset: str) -> None:
    rows = parts({"rows.jsonl": ROWS[:200].rpartition(b"\n")[0] + b"\n"})
    watched = (await client.post("/api/datasets", data={"task": "translation"}, files=rows)).json()["id"]
    job = (await submit(client, dataset, options={"validation_dataset": watched})).json()["id"]
    await client.post(f"/api/jobs/{job}/cancel")
    assert (await client.delete(f"/api/datasets/{watched}")).status_code == 204
    resumed = await client.post(f"/api/jobs/{job}/resume")
    assert (resumed.status_code, resumed.json()["code"]) == (404, "unknown-dataset")


async def test_a_followed_job_streams_until_it_has_finished(
    client: httpx.AsyncClient, services: Services, dataset: str
) -> None:
    job = (await submit(client, dataset)).json()["id"]
    async with (
        on_socket(services) as (socket_client, _),
        socket_client.stream("GET", f"/api/jobs/{job}/events") as response,
    ):
        lines = response.aiter_lines()
        assert (await anext(lines)).startswith("id: ")
        services.registry.request_cancel(job)
        async with asyncio.timeout(10):
            received = [line async for line in lines]
    assert '"cancelled"' in "\n".join(received)


async def test_an_adapter_that_is_being_trained_can_not_be_deleted(
    client: httpx.AsyncClient, services: Services, tmp_path: Path, dataset: str
) -> None:
    publish(services, tmp_path, "de")
    job = (await submit(client, dataset)).json()["id"]
    for url in ("/api/adapters/de", "/api/adapters/de/versions/1"):
        response = await client.delete(url)
        assert (response.status_code, response.json()["code"]) == (409, "conflict")
        assert job in response.json()["detail"]
    await client.post(f"/api/jobs/{job}/cancel")
    assert services.registry.job(job).state is JobState.cancelled
    assert (await client.delete("/api/adapters/de")).status_code == 204
