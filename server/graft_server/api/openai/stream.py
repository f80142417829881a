"""The frames of OpenAI's streams: bare ``data:`` events that end with ``[DONE]``."""

from __future__ import annotations

import json
from typing import Any

from graft_server.api.problems import any_problem, openai_document
from graft_server.api.streaming import event

DONE = event("[DONE]")


def chunk(document: dict[str, Any]) -> str:
    return event(json.dumps(document, ensure_ascii=False))


def error_chunk(error: Exception) -> str:
    """An error after the stream has begun, when its status can no longer say it."""
    return event(openai_document(any_problem(error)))
