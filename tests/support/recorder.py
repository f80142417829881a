"""A torch engine's events, kept for a test to look at, and its loop without a process around it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from graft_server.engine.base import Delta, Embeddings, EngineError, ScoreResult


@dataclass
class Recorder:
    """An ``Events`` sink that keeps everything."""

    deltas: dict[str, list[Delta]] = field(default_factory=dict)
    scores: dict[str, ScoreResult] = field(default_factory=dict)
    embeddings: dict[str, Embeddings] = field(default_factory=dict)
    errors: dict[str, EngineError] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)

    def delta(self, request_id: str, delta: Delta) -> None:
        assert request_id not in self.finished, "a delta behind the last one"
        self.deltas.setdefault(request_id, []).append(delta)
        if delta.finish_reason:
            self.finished.add(request_id)

    def scored(self, request_id: str, result: ScoreResult) -> None:
        assert request_id not in self.scores
        self.scores[request_id] = result

    def embedded(self, request_id: str, result: Embeddings) -> None:
        assert request_id not in self.embeddings
        self.embeddings[request_id] = result

    def done(self, request_id: str) -> None:
        self.finished.add(request_id)

    def error(self, request_id: str, error: EngineError) -> None:
        self.errors[request_id] = error

    def flush(self) -> None:
        """Nothing is held back here."""

    def text(self, request_id: str) -> str:
        return "".join(delta.text for delta in self.deltas[request_id])


def drain(engine: Any, steps: int = 10_000) -> None:
    """Step until nothing is left to do."""
    while not engine.idle or engine.busy_loading:
        engine.poll_adapters()
        if engine.idle:
            time.sleep(0.001)  # the loader thread reads an adapter's files
        engine.step()
        steps -= 1
        assert steps > 0, "the engine never comes to rest"
