"""Errors: one shape under ``/api``, OpenAI's under ``/v1``, always with a code and a request id."""

from __future__ import annotations

import errno
import logging

import httpx
import pytest

from graft_server.services import Services
from support.serving import in_memory, make_services, on_socket


def assert_problem(response: httpx.Response, status: int, code: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:graftwork:problem:{code}"
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


async def test_an_unknown_route_and_a_wrong_method(client: httpx.AsyncClient) -> None:
    problem = assert_problem(await client.get("/api/nothing"), 404, "unknown-route")
    assert "/api/nothing" in problem["detail"]
    response = await client.put("/api/jobs")
    assert_problem(response, 405, "method-not-allowed")
    assert response.headers["allow"]


async def test_the_same_under_v1_in_openais_shape(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/nothing")
    assert response.status_code == 404
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == "unknown_url"


async def test_a_body_that_is_no_json_is_told_with_its_place(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    response = await client.post("/api/predict", content=b'{"adapter": ', headers=headers)
    problem = assert_problem(response, 400, "invalid-json")
    assert problem["errors"][0]["place"].startswith("body:")
    response = await client.post("/v1/chat/completions", content=b"{", headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_json_under_another_media_type_is_refused(client: httpx.AsyncClient) -> None:
    body = b'{"adapter": "base", "text": "x"}'
    headers = {"content-type": "application/x-www-form-urlencoded"}
    response = await client.post("/api/predict", content=body, headers=headers)
    assert_problem(response, 415, "unsupported-media-type")


async def test_each_wrong_field_is_told_by_its_path(client: httpx.AsyncClient) -> None:
    body = {"adapter": "base", "text": "x", "sampling": {"temperature": -1}, "colour": "red"}
    problem = assert_problem(await client.post("/api/predict", json=body), 422, "invalid-request")
    assert {error["place"] for error in problem["errors"]} == {"sampling.temperature", "colour"}


async def test_a_body_over_the_limit_is_refused_by_its_announced_length(tmp_path) -> None:
    services = make_services(tmp_path, max_body_mib=1)
    async with in_memory(services) as client:
        response = await client.post("/api/predict", content=b"x" * (2**20 + 1))
        problem = assert_problem(response, 413, "body-too-large")
        assert "1 MiB" in problem["detail"]
    services.registry.close()


async def test_a_document_may_be_less_large_than_files(tmp_path) -> None:
    services = make_services(tmp_path, max_json_mib=1)
    rows = b'{"source": "a", "target": "b"}\n' * (2**21 // 31)
    async with in_memory(services) as client:
        for media in ("application/json", "text/plain", ""):
            response = await client.post("/api/predict", content=b" " * (2**20 + 1), headers={"content-type": media})
            assert_problem(response, 413, "body-too-large")
        files = [("files", ("rows.jsonl", rows))]
        assert (await client.post("/api/datasets", data={"task": "translation"}, files=files)).status_code == 201
    services.registry.close()


@pytest.mark.parametrize("multipart", [False, True])
async def test_a_body_over_the_limit_is_refused_while_it_is_read(tmp_path, multipart: bool) -> None:
    """Chunked, so that no length is announced."""
    services = make_services(tmp_path, max_body_mib=1)

    async def endless():
        if multipart:
            yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield b"x" * 2**17

    async with on_socket(services) as (client, _):
        media = "multipart/form-data; boundary=b" if multipart else "application/json"
        path = "/api/datasets" if multipart else "/api/predict"
        response = await client.post(path, content=endless(), headers={"content-type": media})
        assert_problem(response, 413, "body-too-large")
        assert (await client.get("/health/live")).status_code == 200
    services.registry.close()


async def test_a_fault_of_the_server_is_logged_but_not_shown(
    client: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(services.registry, "counts", fail)
    with caplog.at_level(logging.ERROR):
        response = await client.get("/api/status", headers={"x-request-id": "mine-1"})
    problem = assert_problem(response, 500, "internal")
    assert problem["request_id"] == "mine-1"
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert any(record.exc_info and "a secret" in str(record.exc_info[1]) for record in caplog.records)


async def test_a_full_disk_is_told_as_such(
    client: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(services.registry, "counts", full)
    assert_problem(await client.get("/api/status"), 507, "storage-full")


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\tb"])
async def test_a_strange_request_id_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    response = await client.get("/health/live", headers={"x-request-id": given})
    assert response.headers["x-request-id"] != given
