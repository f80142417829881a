"""What is told of a request that is over: to the figures by adapter, and to plugins that observe."""

from __future__ import annotations

from graft_server.metrics.by_adapter import Served
from graft_server.observability import Metrics
from graft_server.observers import Observers


def account(metrics: Metrics, observers: Observers, served: Served, *, ref: str, task: str, seconds: float) -> None:
    """Count one request. ``ref`` is ``name@N`` or ``base``; ``seconds`` are those from its arrival to its end, however
    it ended."""
    metrics.requests.observe(served)
    observers.tell(
        "request_served",
        {
            "adapter": ref,
            "task": task,
            "usage": {"prompt_tokens": served.prompt_tokens, "completion_tokens": served.completion_tokens},
            "timings": {"queued": served.queued or 0.0, "first_token": served.first_token, "total": seconds},
            "error": None if served.outcome == "ok" else served.outcome,
        },
    )
