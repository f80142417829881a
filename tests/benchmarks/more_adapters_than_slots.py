"""Throughput with eight times as many adapters as slots, over that with as many adapters as slots.

A server with ``max_slots=8`` and ``max_sequences=64``; a closed loop of 512 clients, each request for one adapter of
64, or of 8, drawn uniformly; prompts of 32 words, 32 new tokens. Output tokens a second, from the first request to the
last answer's end. So some eight requests wait for each of the 64, and eight slots can fill the batch: with one request
for each adapter, 8 slots would hold 8 rows, whatever their order. ``--clients 64`` measures that.
Beforehand each adapter has answered once. Host memory holds all of them, as it does with the default settings.

    PYTHONPATH=tests python tests/benchmarks/more_adapters_than_slots.py --base-model FOLDER
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from adapters import register, write_adapters
from asking import measure, settings_of
from options import Samples, parser, turns
from report import ratio, write_report

from graft_server.bench.random_adapters import locate
from support.processes import running

SLOTS, MANY, SEQUENCES, CLIENTS = 8, 64, 64, 512


async def tokens_per_second(url: str, models: list[str], seed: int, *, clients: int, requests: int) -> float:
    settings = settings_of(url, models, prompt=32, output=32, concurrency=clients, requests=requests, seed=seed)
    measurements = await measure(settings)
    return sum(record.output_tokens for record in measurements.records) / measurements.seconds


def main() -> None:
    own = parser(__doc__)
    own.add_argument("--clients", type=int, default=CLIENTS, help="each with one request at a time")
    own.add_argument("--requests", type=int, default=768, help="of one measurement")
    arguments = own.parse_args()
    base = locate(arguments.base_model)
    load = {"clients": arguments.clients, "requests": arguments.requests}
    speeds = Samples()
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        names = register(base, data_dir, write_adapters(base, Path(folder) / "adapters"), MANY)
        sides = {"64 adapters": names, "8 adapters": names[:SLOTS]}
        with running(base.path, data_dir, max_slots=str(SLOTS), max_sequences=str(SEQUENCES)) as server:
            asyncio.run(tokens_per_second(server.url, names, seed=-1, clients=len(names), requests=len(names)))
            for pair, side in turns(arguments.pairs, list(sides)):
                # Both sides ask other prompts: what an adapter was asked before would be found in its cache.
                seed = 2 * pair + (side == "8 adapters")
                speed = asyncio.run(tokens_per_second(server.url, sides[side], seed, **load))
                speeds.add(side, speed, "tokens/s")
    write_report("more_adapters_than_slots", [ratio("slots64over8", speeds["64 adapters"], speeds["8 adapters"])])


if __name__ == "__main__":
    main()
