"""What 10,000 registered adapters cost over 10: starting a server, and finding the adapter of a request.

Two data folders, filled as publishing fills them: an adapter's rows, and a folder of files of its own (links to the
same three files).

- ``startup_10k_over_10``: from the start of the ``graft serve`` process until ``/health/ready`` says yes
- ``resolve_10k_over_10``: median of ``Resolver.resolve`` in this process over adapters drawn uniformly by name, each of
  which was asked for before
- ``resolve_task_10k_over_10``: the same by the task, which all the adapters serve

    PYTHONPATH=tests python tests/benchmarks/many_adapters.py --base-model FOLDER
"""

from __future__ import annotations

import hashlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from adapters import lineage, write_adapters
from options import Samples, parser, turns
from report import ratio, write_report

from graft_plugins.manager import PluginHost
from graft_server.base_model import BaseModel
from graft_server.bench.random_adapters import locate
from graft_server.plugins import server_plugins
from graft_server.registry import Registry, adapters
from graft_server.registry.artefacts import ArtefactStore, Staged
from graft_server.registry.database import Database
from graft_server.registry.stored import StoredFile
from graft_server.routing.auto.catalogue import FOLDER, ProfileCatalogue
from graft_server.routing.auto.choice import AutoRouter
from graft_server.routing.resolver import Resolver
from graft_server.routing.states import STATE_FILE, StateCache
from support.processes import running

FEW, MANY = 10, 10_000
#: It keeps something with each adapter.
TASK = "translation"


def fill(base: BaseModel, data_dir: Path, files: Sequence[Path], count: int) -> list[str]:
    """Registers so many adapters in one transaction, and returns their names.

    ``Registry.publish`` would copy the files and wait for the disk each time. The digests are of the names, so that
    the artefacts are as many as the adapters.
    """
    Registry.open(data_dir).close()
    store, database = ArtefactStore(data_dir), Database(f"sqlite:///{data_dir / 'registry.db'}")
    names = [f"adapter-{number}" for number in range(count)]
    with database.write() as session:
        for name in names:
            digest = hashlib.sha256(name.encode()).hexdigest()
            staged = Staged(data_dir, tuple(StoredFile(file.name, file.stat().st_size, digest) for file in files))
            adapters.add_version(session, name, staged, lineage(base, TASK))
            folder = store.artefact_path(staged.digest)
            folder.mkdir(parents=True)
            for file in files:
                os.link(file, folder / file.name)
    database.close()
    return names


def ready_seconds(base: BaseModel, data_dir: Path) -> float:
    started = time.perf_counter()
    with running(base.path, data_dir):
        return time.perf_counter() - started


def resolver_of(data_dir: Path, host: PluginHost) -> Resolver:
    registry, states = Registry.open(data_dir), StateCache()
    catalogue = ProfileCatalogue(registry, host, states, data_dir / FOLDER)
    return Resolver(registry, host, states, AutoRouter(registry, host, catalogue, threshold=0.1, below="base"))


def resolve_seconds(resolver: Resolver, names: Sequence[str | None]) -> float:
    """Median seconds of resolving each name; ``None`` is the task."""
    seconds = []
    for name in names:
        started = time.perf_counter()
        resolver.resolve(name, TASK)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    own = parser(__doc__)
    own.add_argument("--adapters", type=int, default=MANY)
    own.add_argument("--resolves", type=int, default=2000, help="of one measurement")
    arguments = own.parse_args()
    base = locate(arguments.base_model)
    host = PluginHost.load("", extra=server_plugins())
    draw = random.Random(0)
    startup, by_name, by_task = Samples(), Samples(), Samples()
    with tempfile.TemporaryDirectory() as scratch:
        (adapter,) = write_adapters(base, Path(scratch) / "adapters", 1)
        (adapter / STATE_FILE).write_text(host.task(TASK).state_model().model_dump_json(), encoding="utf-8")
        data = {"few": Path(scratch) / "few", "many": Path(scratch) / "many"}
        counts = {"few": FEW, "many": arguments.adapters}
        names = {side: fill(base, data[side], list(adapter.iterdir()), counts[side]) for side in data}
        ready_seconds(base, data["few"])
        for _, side in turns(arguments.pairs, ("many", "few")):
            startup.add(side, ready_seconds(base, data[side]), "s until ready")
        resolvers = {side: resolver_of(data[side], host) for side in data}
        for side, resolver in resolvers.items():
            resolve_seconds(resolver, names[side])
        for _, side in turns(arguments.pairs, ("many", "few")):
            drawn = draw.choices(names[side], k=arguments.resolves)
            by_name.add(side, 1000 * resolve_seconds(resolvers[side], drawn), "ms by name")
            by_task.add(side, 1000 * resolve_seconds(resolvers[side], [None] * arguments.resolves), "ms by task")
    figures = {"startup": startup, "resolve": by_name, "resolve_task": by_task}
    write_report(
        "many_adapters", [ratio(f"{name}_10k_over_10", took["many"], took["few"]) for name, took in figures.items()]
    )


if __name__ == "__main__":
    main()
