"""The ``llm`` program with this server's models in its ``extra-openai-models.yaml``, as its manual has it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from graft_server.engine.base import GenerateRequest
from graft_server.services import Services
from support.serving import engine_of, on_socket, publish

Llm = Callable[..., Awaitable[str]]

MODELS = """\
- model_id: de
  model_name: de
  api_base: {url}/v1
  supports_schema: true
- model_id: de-responses
  model_name: de
  api_base: {url}/v1
  responses: true
- model_id: text
  model_name: base
  api_base: {url}/v1
  completion: true
"""


@pytest.fixture
async def llm(services: Services, tmp_path: Path) -> AsyncIterator[Llm]:
    """Runs the program; its answer is what it prints."""
    publish(services, tmp_path, "de")
    home = tmp_path / "llm"
    home.mkdir()
    async with on_socket(services) as (http, _):
        (home / "extra-openai-models.yaml").write_text(MODELS.format(url=http.base_url))
        environment = {**os.environ, "LLM_USER_PATH": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

        async def run(*arguments: str) -> str:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "llm", *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
            )  # fmt: skip
            out, err = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 0, err.decode()
            return out.decode().strip()

        yield run


async def test_it_chats_streamed_and_plain_and_goes_on(llm: Llm, services: Services) -> None:
    assert await llm("-m", "de", "Turn off") == "de@1: Turn off"
    assert await llm("-m", "de", "--no-stream", "Turn on") == "de@1: Turn on"
    assert await llm("--continue", "And again") == "de@1: And again"


async def test_its_schemas_constrain_the_answer(llm: Llm, services: Services) -> None:
    engine_of(services).answer = lambda _: '{"name": "Rex", "age": 3}'
    assert json.loads(await llm("-m", "de", "--schema", "name, age int", "A dog")) == {"name": "Rex", "age": 3}
    request = engine_of(services).requests[-1]
    assert isinstance(request, GenerateRequest)
    assert request.constraint is not None
    assert list(json.loads(request.constraint.json_schema)["properties"]) == ["name", "age"]


async def test_it_asks_for_responses_and_completions(llm: Llm) -> None:
    assert await llm("-m", "de-responses", "Turn off") == "de@1: Turn off"
    assert await llm("-m", "de-responses", "--no-stream", "-s", "Be brief.", "Turn on") == "de@1: Turn on"
    assert await llm("-m", "text", "Once upon") == "base: Once upon"
