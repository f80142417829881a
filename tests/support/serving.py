"""A whole server over a scripted engine: in memory for most tests, on a loopback socket where sockets matter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from graft_plugins.hookspecs import hookimpl
from graft_plugins.manager import PluginHost
from graft_plugins.router import Router
from graft_plugins.task import AnyTask
from graft_server.app import assemble, create_app
from graft_server.config import Settings
from graft_server.http_server import HttpServer, bind, url_of
from graft_server.plugins import server_plugins
from graft_server.registry import Registry
from graft_server.registry.records import Lineage, VersionRecord
from graft_server.services import Services
from support.scripted_engine import FINGERPRINT, ScriptedEngine


class ExtraPlugin:
    """A plugin made of things, and a record of what it was told."""

    def __init__(self, tasks: Iterable[AnyTask] = (), routers: Iterable[Router] = ()) -> None:
        self._tasks = tasks
        self._routers = routers
        self.served: list[dict[str, Any]] = []
        self.published: list[dict[str, Any]] = []

    @hookimpl
    def register_tasks(self, register: Callable[[AnyTask], None]) -> None:
        for task in self._tasks:
            register(task)

    @hookimpl
    def register_routers(self, register: Callable[[Router], None]) -> None:
        for router in self._routers:
            register(router)

    @hookimpl
    def request_served(self, request: dict[str, Any]) -> None:
        self.served.append(request)

    @hookimpl
    def version_published(self, version: dict[str, Any]) -> None:
        self.published.append(version)


class RecordedJobs:
    """Stands where the job runner stands: remembers what it was asked."""

    def __init__(self) -> None:
        self.woken = 0
        self.cancelled: list[str] = []
        self.ended: list[str] = []

    def wake(self) -> None:
        self.woken += 1

    async def cancel(self, job_id: str, *, ended: bool) -> None:
        self.cancelled.append(job_id)
        if ended:
            self.ended.append(job_id)


def make_services(
    folder: Path, engine: ScriptedEngine | None = None, plugin: ExtraPlugin | None = None, **settings: Any
) -> Services:
    """Wired services over a fresh data folder, a real registry and the real plugins."""
    chosen = Settings(base_model="tiny", data_dir=folder / "data", **settings)
    database = chosen.database_url.get_secret_value() if chosen.database_url else None
    registry = Registry.open(chosen.data_dir, database, chosen.artefacts_url)
    extra = [*server_plugins(), *([("extra", plugin)] if plugin else [])]
    host = PluginHost.load(only="", extra=extra)
    services = assemble(chosen, registry, host, engine or ScriptedEngine())
    services.jobs = RecordedJobs()
    return services


def engine_of(services: Services) -> ScriptedEngine:
    assert isinstance(services.engine, ScriptedEngine)
    return services.engine


@asynccontextmanager
async def in_memory(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    """A client that calls the application without a socket."""
    transport = httpx.ASGITransport(create_app(services), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


@asynccontextmanager
async def on_socket(services: Services) -> AsyncIterator[tuple[httpx.AsyncClient, HttpServer]]:
    """A client of a real HTTP server on a free port of this machine."""
    with bind("127.0.0.1", 0) as bound:
        listening = asyncio.Event()
        server = HttpServer(
            create_app(services),
            services.lifecycle,
            drain_seconds=services.settings.drain_seconds,
            on_listening=listening.set,
        )
        # Tests run outside the main thread's signal handling, so the server is told directly.
        running = asyncio.create_task(server._serve([bound]))
        await listening.wait()
        try:
            async with httpx.AsyncClient(base_url=url_of(bound), trust_env=False, timeout=20) as client:
                yield client, server
        finally:
            server.should_exit = True
            await running


def publish(
    services: Services, folder: Path, name: str, task: str = "translation", *, state: dict[str, Any] | None = None
) -> VersionRecord:
    """Publish a small adapter folder as the next version of ``name``."""
    number = sum(1 for _ in folder.glob("source-*"))
    source = folder / f"source-{number}"
    source.mkdir()
    for file, content in adapter_files(state=state, note=number).items():
        (source / file).write_bytes(content)
    lineage = Lineage(
        task=task, method="lora", base_model="tiny", base_fingerprint=FINGERPRINT, rank=8, plugin="graft_plugins"
    )
    return services.registry.publish(name, source, lineage)


def adapter_files(
    *, state: dict[str, Any] | None = None, lineage: dict[str, Any] | None = None, note: int = 0
) -> dict[str, bytes]:
    """The files of an adapter folder. The weights are an empty safetensors file: the scripted engine reads none."""
    header = json.dumps({"__metadata__": {"note": str(note)}}).encode()
    files = {
        "adapter_config.json": json.dumps(
            {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
        ).encode(),
        "adapter_model.safetensors": len(header).to_bytes(8, "little") + header,
    }
    if state is not None:
        files["task_state.json"] = json.dumps(state).encode()
    if lineage is not None:
        files["graft.json"] = json.dumps(lineage).encode()
    return files


def parts(files: dict[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    """Files as the parts of a multipart form."""
    return [("files", (name, content)) for name, content in files.items()]


def sse(text: str) -> list[dict[str, str]]:
    """Server-sent events as dictionaries of their fields."""
    return [
        dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        for block in text.split("\n\n")
        if block.strip() and not block.startswith(":")
    ]


def ndjson(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]
