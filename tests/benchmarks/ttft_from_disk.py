"""Time to first token of a request whose adapter lies on disk only, over that of one whose adapter is in a slot.

A server with ``max_slots=8`` and ``host_cache_mib=1``, less than one adapter, and one request at a time. 24 adapters
are asked in turn, so that each has left its slot and the cache of host memory long before it is asked again (its files
are still in the operating system's cache). Right behind that request, the same adapter is asked once more. Every prompt
has 64 words of its own. The figure compares the medians of a round.

    PYTHONPATH=tests python tests/benchmarks/ttft_from_disk.py --base-model FOLDER
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from adapters import register, write_adapters
from asking import checked, settings_of
from options import Samples, parser
from report import Figure, ratio, write_report

from graft_client.bench.connections import connections
from graft_client.bench.exchange import Exchange
from graft_client.bench.records import Measurements
from graft_client.bench.run import requests_of
from graft_client.bench.workload import Planned
from graft_server.bench.random_adapters import locate
from support.processes import running

SLOTS, ADAPTERS = 8, 24
PROMPT, NEW_TOKENS = 64, 4
SIDES = ("disk", "slot")


async def compare(url: str, names: Sequence[str], rounds: int) -> list[Figure]:
    settings = settings_of(url, names, prompt=PROMPT, output=NEW_TOKENS)
    prompts = requests_of(settings)
    medians = Samples()
    async with connections(url, None, 600) as http:
        exchange = Exchange(http, settings, time.perf_counter)
        # One round more: in the first one nothing has been displaced yet.
        for number in range(rounds + 1):
            measured = {side: Measurements() for side in SIDES}
            for name in names:
                for side in SIDES:
                    prompt = next(prompts)
                    request = Planned(name, prompt.prompt, prompt.words, prompt.output_tokens)
                    await exchange.ask(request, time.perf_counter(), measured[side])
            for side in SIDES if number else ():
                ttft = statistics.median(record.ttft for record in checked(measured[side]).records)
                medians.add(side, 1000 * ttft, "ms")
    return [ratio("ttft_disk_over_slot", medians["disk"], medians["slot"], "x")]


def main() -> None:
    own = parser(__doc__)
    own.add_argument("--adapters", type=int, default=ADAPTERS)
    arguments = own.parse_args()
    if arguments.adapters <= SLOTS:
        own.error(f"with {SLOTS} adapters or fewer, all of them stay in their slots")
    base = locate(arguments.base_model)
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        names = register(base, data_dir, write_adapters(base, Path(folder) / "adapters"), arguments.adapters)
        with running(base.path, data_dir, max_slots=str(SLOTS), host_cache_mib="1") as server:
            figures = asyncio.run(compare(server.url, names, arguments.pairs))
    write_report("ttft_from_disk", figures)


if __name__ == "__main__":
    main()
