"""The torch engine driven directly, without processes or HTTP, for the benchmarks that measure it alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from graft_plugins.manager import PluginHost
from graft_server.base_model import BaseModel
from graft_server.engine.base import AdapterSource, Delta, Embeddings, EngineError, GenerateRequest, ScoreResult
from graft_server.engine.messages import EngineConfig
from graft_server.engine.torch.engine import TorchEngine
from graft_server.plugins import server_plugins

_numbers = itertools.count()


class Counter:
    """Counts the requests that have ended; an error ends the benchmark."""

    def __init__(self) -> None:
        self.ended = 0

    def delta(self, request_id: str, delta: Delta) -> None:
        self.ended += delta.finish_reason is not None

    def scored(self, request_id: str, result: ScoreResult) -> None:
        self.ended += 1

    def embedded(self, request_id: str, result: Embeddings) -> None:
        self.ended += 1

    def done(self, request_id: str) -> None:
        self.ended += 1

    def error(self, request_id: str, error: EngineError) -> None:
        raise error

    def flush(self) -> None:
        """Nothing is held back here."""


class DirectEngine:
    """A ``TorchEngine`` in this thread."""

    def __init__(self, base: BaseModel, **settings: int | str) -> None:
        self.events = Counter()
        config = EngineConfig(engine="torch", base_model=str(base.path), cache_dir="", **settings)  # type: ignore[arg-type]
        methods = PluginHost.load("", extra=server_plugins()).methods
        self.engine = TorchEngine(base, config, methods, self.events)

    def seconds(self, requests: Sequence[GenerateRequest]) -> float:
        """How long it takes to answer all of them, given at once."""
        engine, events = self.engine, self.events
        events.ended = 0
        started = time.perf_counter()
        for request in requests:
            engine.submit(request)
        while events.ended < len(requests):
            engine.poll_adapters()
            engine.step()
        return time.perf_counter() - started

    def load(self, adapters: Sequence[AdapterSource]) -> None:
        """Bring the adapters into their slots."""
        for adapter in adapters:
            self.engine.load(adapter.ref, adapter)
            while adapter.engine_id not in self.engine.slots:
                self.engine.poll_adapters()
                time.sleep(0.001)


def fresh_prompts(count: int, words: int = 24) -> list[str]:
    """Prompts of equal length, never seen before and without a common beginning: no prefix cache knows them."""
    return [f"{next(_numbers):05d} lamps" + " and" * (words - 1) + " switch off" for _ in range(count)]
