"""What the routes work with: the rooms of the server, wired once by ``app``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from graft_plugins.manager import PluginHost
from graft_server.access.keyring import Keyring
from graft_server.config import Settings
from graft_server.engine.base import Engine
from graft_server.engine.stats_cache import StatsCache
from graft_server.lifecycle import Lifecycle
from graft_server.observability import Metrics
from graft_server.observers import Observers
from graft_server.quotas.meter import Meter
from graft_server.registry import Registry
from graft_server.routing.auto.catalogue import ProfileCatalogue
from graft_server.routing.resolver import Resolver
from graft_server.serving.cleaner import Cleaner
from graft_server.serving.embedder import Embedder
from graft_server.serving.evaluator import Evaluator
from graft_server.serving.guards import Guards
from graft_server.serving.pins import Pins
from graft_server.serving.predictor import Predictor
from graft_server.serving.presence import Presence
from graft_server.serving.shadows import Shadows

#: Folder of the data folder where uploads lie until they are taken in.
UPLOADS = "uploads"


class JobQueue(Protocol):
    """The part of the job runner that routes need."""

    def wake(self) -> None:
        """Look at the queue now."""

    async def cancel(self, job_id: str, *, ended: bool) -> None:
        """Stop a running job's worker soon; a queued one never starts, and has ``ended``."""


class BatchQueue(Protocol):
    """The part of the batch runner that routes need."""

    def begin(self, batch_id: str) -> None:
        """Work on a new batch."""

    def cancel(self, batch_id: str) -> None:
        """Ask no more of its requests."""


@dataclass
class Services:
    """One server's rooms. ``jobs`` and ``batches`` are ``None`` until the engine knows the base model."""

    settings: Settings
    registry: Registry
    host: PluginHost
    engine: Engine
    engine_stats: StatsCache
    resolver: Resolver
    predictor: Predictor
    evaluator: Evaluator
    embedder: Embedder
    pins: Pins
    profiles: ProfileCatalogue
    cleaner: Cleaner
    guards: Guards
    shadows: Shadows
    keyring: Keyring
    meter: Meter
    metrics: Metrics
    observers: Observers
    presence: Presence
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    jobs: JobQueue | None = None
    batches: BatchQueue | None = None

    @property
    def ready(self) -> bool:
        return self.engine.state == "ready" and not self.lifecycle.draining

    @property
    def base_name(self) -> str:
        """The base model's name, as far as it is known."""
        return base_name(self.engine, self.settings)

    @property
    def system_fingerprint(self) -> str | None:
        """The base model's fingerprint, short, as OpenAI's responses carry one."""
        if self.engine.state in ("starting", "failed", "stopped"):
            return None
        return f"fp_{self.engine.model.fingerprint[:12]}"

    def is_base(self, name: str | None) -> bool:
        """Whether a caller who names this model means the base model."""
        return name in ("base", self.base_name)

    async def follow(self) -> None:
        """Act on changes of the registry that may be another server's."""
        if self.jobs is not None:
            self.jobs.wake()
        await self.pins.restore()
        # So that no request has to wait for a profile to be made.
        await asyncio.to_thread(self.profiles.refresh)

    @property
    def uploads(self) -> Path:
        """Where uploads lie until they are taken in or thrown away."""
        return self.settings.data_dir / UPLOADS


def base_name(engine: Engine, settings: Settings) -> str:
    """The name the engine gives the base model; before it has loaded it, the one in the settings."""
    return settings.base_model if engine.state in ("starting", "failed", "stopped") else engine.model.name
