"""The two streamed routes of an OpenAI-shaped server: where they are, how a prompt is sent, and where text comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from graft_client.bench.settings import EndpointName


@dataclass(frozen=True)
class Endpoint:
    """``prompt`` gives the fields of the body that carry it, ``text`` the new text of one element of ``choices``."""

    path: str
    prompt: Callable[[str], dict[str, Any]]
    text: Callable[[Mapping[str, Any]], str]


def _delta_text(choice: Mapping[str, Any]) -> str:
    delta = choice.get("delta") or {}
    # Servers of reasoning models stream the thoughts apart from the answer; both are generated tokens.
    return delta.get("content") or delta.get("reasoning_content") or ""


ENDPOINTS: Mapping[EndpointName, Endpoint] = {
    "completions": Endpoint(
        path="/v1/completions",
        prompt=lambda text: {"prompt": text},
        text=lambda choice: choice.get("text") or "",
    ),
    "chat": Endpoint(
        path="/v1/chat/completions",
        prompt=lambda text: {"messages": [{"role": "user", "content": text}]},
        text=_delta_text,
    ),
}
