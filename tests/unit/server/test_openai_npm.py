"""The official npm SDK, unchanged but for its base URL, over every route under ``/v1``."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest

from graft_server.app import batch_runner, create_app
from graft_server.services import Services
from support.openai_npm import folder_with_sdk
from support.serving import on_socket, publish

SCRIPT = Path(__file__).parents[2] / "support" / "openai_routes.mjs"


@pytest.mark.timeout(180)
async def test_every_route(services: Services, tmp_path: Path) -> None:
    folder = await asyncio.to_thread(folder_with_sdk)
    publish(services, tmp_path, "de", state={"target_language": "de"})
    async with on_socket(services) as (http, _):
        runner = batch_runner(services)
        await runner.start()
        services.batches = runner
        script = shutil.copy(SCRIPT, folder)
        process = await asyncio.create_subprocess_exec(
            "node",
            script,
            f"{http.base_url}/v1",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        await runner.stop()
        assert process.returncode == 0, err.decode()
        figures = (await http.get("/metrics")).text
    assert json.loads(out) == {
        "models": ["tiny", "de", "de@1"],
        "model": "de@1",
        "unknown": ["NotFoundError", 404, "model_not_found"],
        "chat": "de@1: hello you",
        "streamed": "de@1: hello you",
        "final": "de@1: hello you",
        "completion": "base: Once",
        "dimensions": 2,
        "wrong": ["BadRequestError", 400, "invalid_request"],
        "response": ["de@1: hello you", "de@1: hello you"],
        "inputs": ["hello you"],
        "parts": "de@1: again",
        "gone": ["NotFoundError", 404, "unknown_response"],
        "processed": "processed",
        "files": ["chats.jsonl", "requests.jsonl"],
        "content": 5,
        "badFile": ["BadRequestError", 400, "invalid_data"],
        "job": ["queued", True],
        "listed": 1,
        "paused": "paused",
        "resumed": "queued",
        "cancelled": "cancelled",
        "events": ["Job stopped", "Job queued: resumed", "Job stopped", "Job queued"],
        "told": 4,
        "checkpoints": 0,
        "batch": {f"r{n}": f"de@1: text {n}" for n in range(3)},
        "batches": 1,
        "tooLate": ["BadRequestError", 400, "conflict"],
        "deleted": [True, True],
    }
    asked = set(re.findall(r'graft_http_requests_total{method="(\w+)",route="(/v1/[^"]*)"', figures))
    paths = create_app(services).openapi()["paths"]
    routes = {
        (method.upper(), path) for path, methods in paths.items() if path.startswith("/v1/") for method in methods
    }
    assert {(method, path.replace(":path}", "}")) for method, path in asked} == routes, "the script asks every route"
