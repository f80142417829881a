"""Datasets over HTTP: what is kept, what is refused, and with which place."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from graft_server.services import Services
from support.serving import parts

GOOD = "".join(json.dumps({"source": f"text {n}", "target": f"Text {n}"}) + "\n" for n in range(10)).encode()
BAD = GOOD + b'{"source": "no target"}\nno json\n'


async def upload(client: httpx.AsyncClient, files: dict[str, bytes], path: str = "", **form: Any) -> httpx.Response:
    data = {"task": "translation", **form}
    return await client.post(f"/api/datasets{path}", data=data, files=parts(files))


async def test_a_dataset_is_stored_listed_shown_and_deleted(client: httpx.AsyncClient) -> None:
    response = await upload(client, {"rows.jsonl": GOOD})
    assert response.status_code == 201, response.text
    dataset = response.json()
    assert (dataset["task"], dataset["format"], dataset["rows"], dataset["bad_rows"]) == ("translation", "jsonl", 10, 0)
    assert dataset["files"][0]["name"] == "rows.jsonl"
    assert (await upload(client, {"rows.jsonl": GOOD})).json()["id"] == dataset["id"]
    assert [each["id"] for each in (await client.get("/api/datasets?task=translation")).json()] == [dataset["id"]]
    assert (await client.get("/api/datasets?task=chat")).json() == []
    url = f"/api/datasets/{dataset['id']}"
    assert (await client.get(url)).json() == dataset
    assert (await client.delete(url)).status_code == 204
    assert (await client.get(url)).json()["code"] == "unknown-dataset"


async def test_bad_rows_refuse_a_dataset_with_the_place_of_each(client: httpx.AsyncClient, services: Services) -> None:
    response = await upload(client, {"rows.jsonl": BAD})
    assert (response.status_code, response.json()["code"]) == (422, "invalid-data")
    problem = response.json()
    assert "2 of 12 rows are bad" in problem["detail"]
    assert "--skip-bad" in problem["detail"]
    assert [error["place"] for error in problem["errors"]] == ["rows.jsonl:11:target", "rows.jsonl:12"]
    assert services.registry.datasets() == []


async def test_skip_bad_goes_on_and_says_how_many(client: httpx.AsyncClient) -> None:
    response = await upload(client, {"rows.jsonl": BAD}, skip_bad="true")
    assert response.status_code == 201
    assert (response.json()["rows"], response.json()["bad_rows"]) == (10, 2)


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ({"rows.jsonl": b""}, "empty"),
        ({"rows.jsonl": b"\xff\xfe\x00{"}, "rows.jsonl"),
        ({"rows.xyz": b"abc"}, "rows.xyz"),
        ({"rows.jsonl": b'{"a": 1}\n'}, "all 1 rows are bad"),
    ],
)
async def test_a_file_that_is_no_dataset(client: httpx.AsyncClient, files: dict[str, bytes], part: str) -> None:
    response = await upload(client, files, skip_bad="true")
    assert (response.status_code, response.json()["code"]) == (422, "invalid-data")
    assert part in response.json()["detail"]


async def test_names_that_do_not_exist(client: httpx.AsyncClient) -> None:
    response = await upload(client, {"rows.jsonl": GOOD}, task="translatio")
    assert (response.status_code, response.json()["nearest"]) == (404, "translation")
    response = await upload(client, {"rows.jsonl": GOOD}, format="jsnl")
    assert (response.json()["code"], response.json()["nearest"]) == ("unknown-format", "jsonl")
    assert (await client.get("/api/datasets?task=nothing")).status_code == 404


@pytest.mark.parametrize("name", ["../rows.jsonl", "/etc/rows.jsonl", "a\\b.jsonl", ".."])
async def test_a_file_name_with_a_path_is_refused(client: httpx.AsyncClient, services: Services, name: str) -> None:
    response = await upload(client, {name: GOOD})
    assert (response.status_code, response.json()["code"]) == (422, "invalid-request")
    assert services.registry.datasets() == []


async def test_a_form_without_files_or_task(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/datasets", data={"task": "translation"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["place"] == "files"
    response = await client.post("/api/datasets", files=parts({"rows.jsonl": GOOD}))
    assert response.json()["errors"][0]["place"] == "task"


async def test_a_check_stores_nothing_and_says_what_training_would_see(
    client: httpx.AsyncClient, services: Services
) -> None:
    response = await upload(client, {"rows.jsonl": BAD}, "/check")
    assert response.status_code == 200, response.text
    check = response.json()
    assert (check["format"], check["rows"], check["bad_rows"]) == ("jsonl", 10, 2)
    assert check["train_rows"] + check["test_rows"] == 10
    assert check["examples"][0]["source"] == "text 0"
    assert check["errors"][0]["place"] == "rows.jsonl:11:target"
    assert services.registry.datasets() == []


async def test_a_check_of_many_bad_rows_lists_the_first_fifty(client: httpx.AsyncClient) -> None:
    check = (await upload(client, {"rows.jsonl": b'{"x": 1}\n' * 200}, "/check")).json()
    assert (check["bad_rows"], len(check["errors"])) == (200, 50)


async def test_uploads_leave_nothing_behind(client: httpx.AsyncClient, services: Services) -> None:
    await upload(client, {"rows.jsonl": GOOD})
    await upload(client, {"rows.jsonl": BAD})
    assert list(services.uploads.iterdir()) == []
