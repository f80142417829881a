"""What HTTP, admission and the hop between two processes cost: tokens/s through a server over those of the bare engine.

64 requests at once of the base model, prompts of 32 words, 64 new tokens each with ``ignore_eos``, three ways:

- ``engine``: submitted to a ``TorchEngine`` in this process, until its last step
- ``http``: ``POST /v1/completions`` to a server process, answered whole, until the last byte (``http_over_engine``)
- ``stream``: the same, streamed in chunks of one token (``http_stream_over_engine``)

Only one of them has work at a time. The client shares the machine's cores with the server, so that the two ratios
include what the client costs; ``http_client_cpu_share`` is how much of one core that was.

    PYTHONPATH=tests python tests/benchmarks/http_over_engine.py --base-model FOLDER
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import httpx
from asking import checked, settings_of
from direct import DirectEngine
from options import Samples, parser, turns
from report import Figure, median, ratio, write_report

from graft_client.bench.connections import connections
from graft_client.bench.endpoints import ENDPOINTS
from graft_client.bench.exchange import Exchange
from graft_client.bench.records import Measurements
from graft_client.bench.run import requests_of
from graft_client.bench.settings import BenchSettings
from graft_client.bench.workload import Planned
from graft_server.base_model import BaseModel
from graft_server.bench.random_adapters import locate
from graft_server.engine.base import ChatMessage, GenerateRequest, PromptInput, SamplingParams
from support.processes import running

PROMPT, NEW_TOKENS = 32, 64
UNIT = "tokens/s"


async def ask_whole(http: httpx.AsyncClient, requests: Sequence[Planned], settings: BenchSettings) -> None:
    """Sends all requests at once and waits for all answers, without streams."""
    endpoint = ENDPOINTS[settings.endpoint]

    async def ask(request: Planned) -> None:
        body = {
            "model": request.model,
            **endpoint.prompt(request.prompt),
            "max_tokens": request.output_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
        }
        answer = await http.post(endpoint.path, json=body)
        tokens = answer.raise_for_status().json()["usage"]["completion_tokens"]
        assert tokens == request.output_tokens, f"{tokens} tokens instead of {request.output_tokens}"

    async with asyncio.TaskGroup() as group:
        for request in requests:
            group.create_task(ask(request))


async def ask_streams(http: httpx.AsyncClient, requests: Sequence[Planned], settings: BenchSettings) -> None:
    """Sends all requests at once and reads all streams to their ends."""
    exchange, measurements = Exchange(http, settings, time.perf_counter), Measurements()
    async with asyncio.TaskGroup() as group:
        for request in requests:
            group.create_task(exchange.ask(request, 0.0, measurements))
    checked(measurements)


async def side(
    name: str, engine: DirectEngine, http: httpx.AsyncClient, settings: BenchSettings
) -> tuple[float, float]:
    """Tokens a second, and the share of that time in which this process was on a core."""
    requests = list(islice(requests_of(settings), settings.requests))
    direct = [_direct(number, request, settings) for number, request in enumerate(requests)]
    started, cpu = time.perf_counter(), time.process_time()
    match name:
        case "engine":
            engine.seconds(direct)
        case "http":
            await ask_whole(http, requests, settings)
        case "stream":
            await ask_streams(http, requests, settings)
    seconds = time.perf_counter() - started
    return sum(request.output_tokens for request in requests) / seconds, (time.process_time() - cpu) / seconds


def _direct(number: int, request: Planned, settings: BenchSettings) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=request.output_tokens, ignore_eos=True)
    chat = PromptInput(messages=(ChatMessage("user", request.prompt),))
    prompt = chat if settings.endpoint == "chat" else PromptInput(text=request.prompt)
    return GenerateRequest(str(number), prompt, sampling)


async def compare(base: BaseModel, url: str, sequences: int, pairs: int, *, name: str, endpoint: str) -> list[Figure]:
    """The figures of one endpoint; ``name`` is what they begin with."""
    engine = DirectEngine(base)
    speeds, shares = Samples(), Samples()
    sizes = {"prompt": PROMPT, "output": NEW_TOKENS, "requests": sequences, "concurrency": sequences}

    def settings(seed: int) -> BenchSettings:
        return settings_of(url, ["base"], **sizes, endpoint=endpoint, seed=seed)

    async with connections(url, None, 600) as http:
        for each in ("engine", "http", "stream"):
            await side(each, engine, http, settings(-1))
        for pair, each in turns(pairs, ("http", "engine", "stream")):
            # A prompt that the server has answered before would be found in its cache.
            seed = 2 * pair + (each == "stream")
            speed, share = await side(each, engine, http, settings(seed))
            speeds.add(each, speed, UNIT)
            shares[each].append(share)
    return [
        ratio(f"{name}_over_engine", speeds["http"], speeds["engine"], "x"),
        ratio(f"{name}_stream_over_engine", speeds["stream"], speeds["engine"], "x"),
        median(f"{name}_client_cpu_share", shares["http"], "of a core"),
        median(f"{name}_client_cpu_share_streaming", shares["stream"], "of a core"),
    ]


def run(description: str | None, *, name: str, endpoint: str) -> None:
    """Measure one endpoint as the command line asks; see ``compare``."""
    own = parser(description)
    own.add_argument("--sequences", type=int, default=64)
    arguments = own.parse_args()
    base = locate(arguments.base_model)
    with tempfile.TemporaryDirectory() as folder, running(base.path, Path(folder) / "data") as server:
        comparing = compare(base, server.url, arguments.sequences, arguments.pairs, name=name, endpoint=endpoint)
        figures = asyncio.run(comparing)
    write_report(f"{name}_over_engine", figures)


if __name__ == "__main__":
    run(__doc__, name="http", endpoint="completions")
