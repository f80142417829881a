"""Adapters through our server on vLLM, over ``vllm serve``: 8 over 8 slots, and 64 over 8 slots.

A closed loop of 64 clients, each request for an adapter drawn uniformly, prompts of 32 words, 32 new tokens, through
the same load generator. ``serve`` is ``vllm serve --enable-lora --max-loras 8`` as it ships; ``serve, our wrapper`` is
the same with the wrapper of ``graft_server.engine.vllm`` and ``--enforce-eager``, which it needs.

    PYTHONPATH=tests python tests/benchmarks/vllm_behind_server.py --base-model FOLDER
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from adapters import RANK, register, write_adapters
from asking import measure, settings_of
from options import Samples, parser, turns
from report import ratio, write_report

from graft_server.base_model import BaseModel
from graft_server.bench.random_adapters import locate
from graft_server.engine.vllm.plugin import SWITCH
from support.processes import eventually, running

SLOTS, MANY, CLIENTS = 8, 64, 64
OURS, SERVE, SERVE_OURS = "ours", "serve", "serve, our wrapper"


@contextmanager
def vllm_serve(base: BaseModel, adapters: dict[str, Path], *, wrapper: bool) -> Iterator[str]:
    """The address of a ``vllm serve`` with these adapters."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    vllm = str(Path(sys.executable).parent / "vllm")
    command = [vllm, "serve", str(base.path), "--port", str(port), "--dtype", "bfloat16", "--max-model-len", "1024"]
    command += ["--kv-cache-memory-bytes", str(1 << 30), "--enable-lora", "--max-loras", str(SLOTS)]
    command += ["--max-lora-rank", str(RANK), *(["--enforce-eager"] if wrapper else [])]
    command += ["--lora-modules", *(f"{name}={folder}" for name, folder in adapters.items())]
    environment = {**os.environ, SWITCH: "1" if wrapper else "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    def ready() -> bool:
        assert process.poll() is None, "vllm serve has ended"
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health").is_success
        except httpx.TransportError:
            return False

    try:
        eventually(ready, within=400, what="vllm serve is ready")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


async def load(url: str, models: list[str], requests: int, seed: int) -> tuple[float, float]:
    """Output tokens a second, and the p99 of the latency in seconds."""
    settings = settings_of(url, models, prompt=32, output=32, concurrency=CLIENTS, requests=requests, seed=seed)
    measured = await measure(settings)
    latencies = sorted(record.latency for record in measured.records)
    tokens = sum(record.output_tokens for record in measured.records)
    return tokens / measured.seconds, statistics.quantiles(latencies, n=100)[98]


def main() -> None:
    own = parser(__doc__)
    own.set_defaults(pairs=1)
    own.add_argument("--requests", type=int, default=256, help="of one measurement")
    arguments = own.parse_args()
    base = locate(arguments.base_model)
    speeds, p99 = Samples(), Samples()

    def both(side: str, url: str, names: list[str], pair: int) -> None:
        asyncio.run(load(url, names, MANY, seed=-1))
        for count in (SLOTS, MANY):
            speed, slowest = asyncio.run(load(url, names[:count], arguments.requests, 2 * pair + (count == SLOTS)))
            speeds.add(f"{side} {count}", speed, "tokens/s")
            p99.add(f"{side} {count}", slowest, "s")

    with tempfile.TemporaryDirectory() as folder:
        folders = write_adapters(base, Path(folder) / "adapters")
        data_dir = Path(folder) / "data"
        names = register(base, data_dir, folders, MANY)
        adapters = {name: folders[i % len(folders)] for i, name in enumerate(names)}
        for pair, side in turns(arguments.pairs, [OURS, SERVE, SERVE_OURS]):
            if side == OURS:
                with running(base.path, data_dir, engine="vllm", max_slots=str(SLOTS), max_rank=str(RANK)) as server:
                    both(side, server.url, names, pair)
            else:
                with vllm_serve(base, adapters, wrapper=side == SERVE_OURS) as url:
                    both(side, url, names, pair)
    figures = [
        ratio("vllm_ours_over_serve_same_wrapper", speeds[f"{OURS} {SLOTS}"], speeds[f"{SERVE_OURS} {SLOTS}"]),
        ratio("vllm_ours_over_serve", speeds[f"{OURS} {SLOTS}"], speeds[f"{SERVE} {SLOTS}"]),
        ratio("vllm_cliff_throughput", speeds[f"{OURS} {MANY}"], speeds[f"{SERVE} {MANY}"]),
        ratio("vllm_cliff_p99", p99[f"{OURS} {MANY}"], p99[f"{SERVE} {MANY}"]),
        ratio("vllm_slots64over8", speeds[f"{OURS} {MANY}"], speeds[f"{OURS} {SLOTS}"]),
    ]
    write_report("vllm_behind_server", figures)


if __name__ == "__main__":
    main()
