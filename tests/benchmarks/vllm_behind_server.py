"""Adapters through our server on vLLM, over ``vllm serve``: 8 over 8 slots, and 64 over 8 slots.

A closed loop of ``--clients``, each request for an adapter drawn uniformly, prompts of 32 words, 32 new tokens, through
the same load generator; 64 sequences at once. With 512 clients some eight requests wait for each of 64 adapters, as in
``more_adapters_than_slots``; with 64, 8 slots hold some 8 rows whatever their order.

``serve`` is ``vllm serve --enable-lora --max-loras 8`` as it ships; ``serve, our wrapper`` is the same with the wrapper
of ``graft_server.engine.vllm`` and ``--enforce-eager``, which it needs. Our server on the torch engine is measured
beside it, for the choice between the engines. All compute in the type that our server chooses: bfloat16 where the
processor multiplies it, else float32. ``--sides`` measures some of them, for the figures that need no others.

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
from graft_server.base_model.device import choose_dtype
from graft_server.bench.random_adapters import locate
from graft_server.engine.vllm.plugin import SWITCH
from support.processes import eventually, running

SLOTS, MANY, SEQUENCES, CLIENTS = 8, 64, 64, 512
OURS, SERVE, SERVE_OURS, TORCH = "ours", "serve", "serve, our wrapper", "torch"
SIDES = (OURS, SERVE, SERVE_OURS, TORCH)


@contextmanager
def vllm_serve(base: BaseModel, adapters: dict[str, Path], *, wrapper: bool) -> Iterator[str]:
    """The address of a ``vllm serve`` with these adapters."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # What `vllm serve` runs; that command itself asks for a distribution named `vllm`, which the CPU build is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base.path)]
    command += ["--port", str(port), "--dtype", choose_dtype("auto", "cpu"), "--max-model-len", "1024"]
    command += ["--kv-cache-memory-bytes", str(1 << 30), "--enable-lora", "--max-loras", str(SLOTS)]
    command += [
        "--max-num-seqs",
        str(SEQUENCES),
        "--max-lora-rank",
        str(RANK),
        *(["--enforce-eager"] if wrapper else []),
    ]
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


async def load(url: str, models: list[str], clients: int, requests: int, seed: int) -> tuple[float, float]:
    """Output tokens a second, and the p99 of the latency in seconds."""
    settings = settings_of(url, models, prompt=32, output=32, concurrency=clients, requests=requests, seed=seed)
    measured = await measure(settings)
    latencies = sorted(record.latency for record in measured.records)
    tokens = sum(record.output_tokens for record in measured.records)
    return tokens / measured.seconds, statistics.quantiles(latencies, n=100)[98]


def main() -> None:
    own = parser(__doc__)
    own.set_defaults(pairs=1)
    own.add_argument("--clients", type=int, default=CLIENTS, help="each with one request at a time")
    own.add_argument("--requests", type=int, default=768, help="of one measurement")
    own.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="measure these only")
    arguments = own.parse_args()
    base = locate(arguments.base_model)
    speeds, p99 = Samples(), Samples()

    def both(side: str, url: str, names: list[str], pair: int) -> None:
        asyncio.run(load(url, names, MANY, MANY, seed=-1))
        for count in (SLOTS, MANY):
            clients, requests, seed = arguments.clients, arguments.requests, 2 * pair + (count == SLOTS)
            speed, slowest = asyncio.run(load(url, names[:count], clients, requests, seed))
            speeds.add(f"{side} {count}", speed, "tokens/s")
            p99.add(f"{side} {count}", slowest, "s")

    with tempfile.TemporaryDirectory() as folder:
        folders = write_adapters(base, Path(folder) / "adapters")
        data_dir = Path(folder) / "data"
        names = register(base, data_dir, folders, MANY)
        adapters = {name: folders[i % len(folders)] for i, name in enumerate(names)}
        for pair, side in turns(arguments.pairs, arguments.sides):
            if side in (OURS, TORCH):
                engine = "vllm" if side == OURS else "torch"
                sizes = {"max_slots": str(SLOTS), "max_rank": str(RANK), "max_sequences": str(SEQUENCES)}
                with running(base.path, data_dir, engine=engine, **sizes) as server:
                    both(side, server.url, names, pair)
            else:
                with vllm_serve(base, adapters, wrapper=side == SERVE_OURS) as url:
                    both(side, url, names, pair)
    eight, many = ({side: f"{side} {count}" for side in SIDES} for count in (SLOTS, MANY))
    wanted = [
        ("vllm_ours_over_serve_same_wrapper", speeds, eight[OURS], eight[SERVE_OURS]),
        ("vllm_ours_over_serve", speeds, eight[OURS], eight[SERVE]),
        ("vllm_cliff_throughput", speeds, many[OURS], many[SERVE]),
        ("vllm_cliff_p99", p99, many[OURS], many[SERVE]),
        ("vllm_slots64over8", speeds, many[OURS], eight[OURS]),
        ("vllm_server8_over_torch", speeds, eight[OURS], eight[TORCH]),
        ("vllm_server64_over_torch", speeds, many[OURS], many[TORCH]),
    ]
    figures = [
        ratio(name, samples[above], samples[below])
        for name, samples, above, below in wanted
        if above in samples and below in samples
    ]
    write_report("vllm_behind_server", figures)


if __name__ == "__main__":
    main()
