"""The OpenAI-shaped requests without HTTP, as batches send them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from graft_client.schemas.openai import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from graft_server.access.principal import Principal
from graft_server.api.openai.complete import complete
from graft_server.registry.errors import UnknownError
from graft_server.registry.visibility import Visibility
from graft_server.services import Services
from graft_server.serving.predictor import Terms
from support.serving import engine_of, make_services, publish

HELLO = {"role": "user", "content": "hello you"}
LATER = Terms(background=True)


async def test_each_request_is_answered_with_the_document_of_its_route(services: Services) -> None:
    chat = await complete(services, ChatCompletionRequest(model="base", messages=[HELLO], stream=True), LATER)
    text = await complete(services, CompletionRequest(model="base", prompt=["one", "two"]), LATER)
    vectors = await complete(services, EmbeddingRequest(model="base", input="a b c"), LATER)
    assert (chat.object, chat.choices[0].message.content) == ("chat.completion", "base: hello you")
    assert [choice.text for choice in text.choices] == ["base: one", "base: two"]
    assert vectors.usage.prompt_tokens == 3


async def test_a_principal_is_answered_by_what_they_may_see_alone(services: Services, tmp_path: Path) -> None:
    publish(services, tmp_path, "anna.de")
    publish(services, tmp_path, "ben.de")
    anna = Principal("anna", frozenset({"query"}), Visibility(("anna.*",), "anna"))
    own = await complete(services, ChatCompletionRequest(model="anna.de", messages=[HELLO]), LATER, anna)
    assert own.model == "anna.de@1"
    with pytest.raises(UnknownError):
        await complete(services, ChatCompletionRequest(model="ben.de", messages=[HELLO]), LATER, anna)


async def test_background_requests_let_interactive_ones_pass(tmp_path: Path) -> None:
    services = make_services(tmp_path, max_sequences=1)
    engine = engine_of(services)
    engine.hold()
    order: list[str] = []

    async def ask(text: str, terms: Terms) -> None:
        await complete(services, CompletionRequest(model="base", prompt=text), terms)
        order.append(text)

    first = asyncio.create_task(ask("first", LATER))
    await engine.until(lambda engine: len(engine.running) == 1)
    later = asyncio.create_task(ask("background", LATER))
    while services.predictor.queued < 1:
        await asyncio.sleep(0.01)
    soon = asyncio.create_task(ask("interactive", Terms()))
    while services.predictor.queued < 2:
        await asyncio.sleep(0.01)
    engine.release()
    await asyncio.gather(first, later, soon)
    services.registry.close()
    assert order == ["first", "interactive", "background"]
