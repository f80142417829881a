"""Streams as an OpenAI-shaped server sends them, for the little server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from unit.client.little_server import Answer, Asked

EVENTS = {"Content-Type": "text/event-stream"}


def frame(document: dict[str, Any] | str) -> bytes:
    text = document if isinstance(document, str) else json.dumps(document)
    return f"data: {text}\n\n".encode()


def completion(asked: Asked, *, first: float = 0.0, between: float = 0.0, usage: bool = True) -> Iterator[bytes]:
    """As many one-token pieces as ``max_tokens`` says; ``first`` and ``between`` are seconds of delay."""
    body = asked.json()
    chat = "messages" in body
    count = body["max_tokens"]
    if chat:
        yield frame({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
    for number in range(count):
        time.sleep(between if number else first)
        text = {"delta": {"content": "w "}} if chat else {"text": "w "}
        yield frame({"choices": [{**text, "finish_reason": None}], "usage": None})
    last = {"delta": {}} if chat else {"text": ""}
    yield frame({"choices": [{**last, "finish_reason": "length"}]})
    if usage:
        yield frame({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7}})
    yield frame("[DONE]")


def streaming(**delays: Any) -> Callable[[Asked], Answer]:
    """A reply that streams ``completion``."""
    return lambda asked: Answer(200, completion(asked, **delays), EVENTS)


def openai_error(status: int, message: str) -> Answer:
    body = json.dumps({"error": {"message": message, "type": "x"}}).encode()
    return Answer(status, [body], {"Content-Type": "application/json"})
