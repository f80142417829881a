"""A server process over the scripted engine, with one of each thing in its registry.

``python -m support.scripted_server FOLDER`` prints its URL and a key, and serves until it is told to stop.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from graft_client.schemas.jobs import JobState
from graft_client.schemas.routes import RouteSpec, RouteTarget
from graft_server.app import create_app
from graft_server.http_server import HttpServer, bind, url_of
from graft_server.observability import configure_logging
from graft_server.registry import Registry
from graft_server.services import Services
from support.serving import make_services, publish

#: What the registry holds.
ADAPTER, ROUTE, TASK = "de", "strings", "translation"


class ScriptedServer(NamedTuple):
    """Where it is, the key of an admin, and the file that it logs to."""

    url: str
    key: str
    log: Path


def environment() -> dict[str, str]:
    """For a process that imports what the tests do."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@contextmanager
def scripted_server(folder: Path) -> Iterator[ScriptedServer]:
    """A running one, for the body of the ``with``."""
    log = folder / "server.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "support.scripted_server", folder],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment(),
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, log.read_text()
            yield ScriptedServer(*line.split(), log)
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()


class EndedJobs:
    """A job queue in which every job ends as soon as it is there, so that following one ends too."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def wake(self) -> None:
        for job in self._registry.jobs(JobState.queued):
            self._registry.request_cancel(job.id)

    async def cancel(self, job_id: str, *, ended: bool) -> None:
        pass


def seed(services: Services, folder: Path) -> str:
    """One of each thing; returns the key of an admin."""
    registry = services.registry
    for _ in range(2):
        publish(services, folder, ADAPTER, TASK, state={"target_language": "German"})
    publish(services, folder, "other", TASK)
    registry.routes.set(ROUTE, RouteSpec(targets=[RouteTarget(ref=f"{ADAPTER}@1", weight=100)]), who="", why="")
    rows = folder / "rows"
    rows.mkdir()
    (rows / "rows.jsonl").write_text('{"source": "Turn off", "target": "Ausschalten"}\n' * 20)
    dataset = registry.add_dataset(task=TASK, format="jsonl", rows=20, bad_rows=0, folder=rows)
    registry.create_job(task=TASK, adapter="new", dataset=dataset.id, method="lora", options={})
    return registry.create_key("root", ["admin"])[1]


def main(folder: Path) -> None:
    configure_logging("info", "plain")
    services = make_services(folder, request_timeout_seconds=20)
    key = seed(services, folder)
    services.jobs = EndedJobs(services.registry)
    services.jobs.wake()
    with bind("127.0.0.1", 0) as bound:
        server = HttpServer(
            create_app(services),
            services.lifecycle,
            drain_seconds=1,
            on_listening=lambda: print(url_of(bound), key, flush=True),
        )
        server.run(sockets=[bound])
    services.registry.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
