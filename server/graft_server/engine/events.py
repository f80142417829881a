"""Where an engine reports what comes of its requests, whichever engine it is."""

from __future__ import annotations

from typing import Protocol

from graft_server.engine.base import Delta, Embeddings, EngineError, ScoreResult


class Events(Protocol):
    """A sink, written to by the thread that owns the engine."""

    def delta(self, request_id: str, delta: Delta) -> None: ...

    def scored(self, request_id: str, result: ScoreResult) -> None: ...

    def embedded(self, request_id: str, result: Embeddings) -> None: ...

    def done(self, request_id: str) -> None: ...

    def error(self, request_id: str, error: EngineError) -> None: ...

    def flush(self) -> None:
        """Pass on what was gathered: deltas of one step may travel together."""
        ...
