"""Latency of quiet adapters while another one is flooded, over their latency without.

Nine adapters have one client each, which asks for 16 tokens, waits for the whole answer and then thinks for half a
second; prompts of 32 words. With the ``flood``, a tenth adapter has 64 clients that ask for 64 tokens each and never
think. The flood begins with the measurement, so that its onset is part of it. The figure compares the 99th percentiles
of end-to-end latencies of the quiet ones.

    PYTHONPATH=tests python tests/benchmarks/quiet_under_flood.py --base-model FOLDER
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
from adapters import register, write_adapters
from asking import checked, settings_of
from options import Samples, parser, turns
from report import Figure, ratio, write_report

from graft_client.bench.connections import connections
from graft_client.bench.exchange import Exchange
from graft_client.bench.records import Measurements
from graft_client.bench.run import requests_of
from graft_client.bench.settings import BenchSettings
from graft_client.bench.statistics import percentile
from graft_server.bench.random_adapters import locate
from support.processes import running

QUIET, FLOODERS = 9, 64
PROMPT, QUIET_TOKENS, FLOOD_TOKENS = 32, 16, 64
THINK = 0.5


async def client(
    http: httpx.AsyncClient,
    settings: BenchSettings,
    measurements: Measurements,
    *,
    think: float = 0.0,
    until: float = math.inf,
) -> None:
    """Asks, reads the answer, thinks, and so on; nothing is sent behind ``until``."""
    exchange = Exchange(http, settings, time.perf_counter)
    for request in requests_of(settings):
        if (now := time.perf_counter()) > until:
            return
        await exchange.ask(request, now, measurements)
        await asyncio.sleep(think)


async def latencies(
    http: httpx.AsyncClient, names: Sequence[str], *, flood: bool, seconds: float, run: int
) -> list[float]:
    """Ascending, in seconds, of the quiet requests that were sent within ``seconds``; the flood lasts until the last
    of them is answered."""
    quiet, flooded = Measurements(), Measurements()
    until = time.perf_counter() + seconds

    def sends(name: str, client: int, output: int) -> BenchSettings:
        return settings_of(str(http.base_url), [name], prompt=PROMPT, output=output, seed=run * 1000 + client)

    async with asyncio.TaskGroup() as group:
        flooders = [
            group.create_task(client(http, sends(names[QUIET], QUIET + number, FLOOD_TOKENS), flooded))
            for number in range(FLOODERS if flood else 0)
        ]
        async with asyncio.TaskGroup() as quiet_ones:
            for number, name in enumerate(names[:QUIET]):
                asked = sends(name, number, QUIET_TOKENS)
                quiet_ones.create_task(client(http, asked, quiet, think=THINK, until=until))
        for flooder in flooders:
            flooder.cancel()
    checked(flooded)
    return sorted(record.latency for record in checked(quiet).records)


async def compare(url: str, names: Sequence[str], pairs: int, seconds: float) -> list[Figure]:
    p50, p99 = Samples(), Samples()
    async with connections(url, None, 600) as http:
        # Loads the adapters.
        await latencies(http, names, flood=True, seconds=1.0, run=0)
        for run, (_, side) in enumerate(turns(pairs, ("quiet", "flood")), start=1):
            took = await latencies(http, names, flood=side == "flood", seconds=seconds, run=run)
            p50[side].append(1000 * percentile(took, 50))
            p99.add(side, 1000 * percentile(took, 99), f"ms at p99 of {len(took)}, {p50[side][-1]:.4g} ms at p50")
    return [
        ratio("quiet_p99_under_flood", p99["flood"], p99["quiet"], "x"),
        ratio("quiet_p50_under_flood", p50["flood"], p50["quiet"], "x"),
    ]


def main() -> None:
    own = parser(__doc__)
    own.add_argument("--seconds", type=float, default=15.0, help="of one measurement")
    arguments = own.parse_args()
    base = locate(arguments.base_model)
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        names = register(base, data_dir, write_adapters(base, Path(folder) / "adapters"), QUIET + 1)
        with running(base.path, data_dir) as server:
            figures = asyncio.run(compare(server.url, names, arguments.pairs, arguments.seconds))
    write_report("quiet_under_flood", figures)


if __name__ == "__main__":
    main()
