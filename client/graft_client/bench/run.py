"""A run from its first request to its last: connections, warm-up, load, and a look at how late this process is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from random import Random

import httpx

from graft_client._transport import translated
from graft_client.bench.arrivals import poisson
from graft_client.bench.connections import connections
from graft_client.bench.exchange import Exchange
from graft_client.bench.load import closed_loop, open_loop
from graft_client.bench.records import Measurements
from graft_client.bench.settings import BenchSettings
from graft_client.bench.workload import Planned, workload
from graft_client.errors import ConnectError, GraftError

_LOOK_EVERY = 0.1
_PATIENCE = 30.0
_WARMUP_CONCURRENCY = 8

Tell = Callable[[Measurements], None]


async def run(settings: BenchSettings, measurements: Measurements, *, api_key: str | None, tell: Tell) -> None:
    """Warms the server up, puts the load on it, and fills ``measurements``; ``tell`` is shown them as they grow.

    When it is cancelled, requests in flight are given up and left out, and what was measured stays.

    Raises:
        ConnectError: the server can't be reached for the warm-up.
        GraftError: no request of the warm-up was answered; the text has the reason of one.
    """
    async with connections(settings.url, api_key, settings.timeout) as http:
        await _warm_up(http, settings)
        started = time.perf_counter()

        def clock() -> float:
            return time.perf_counter() - started

        exchange = Exchange(http, settings, clock)

        async def ask(planned: Planned, due: float) -> bool:
            return (await exchange.ask(planned, due, measurements)).failure is None

        watcher = asyncio.create_task(_watch(measurements, clock, tell))
        requests = islice(requests_of(settings), settings.requests)
        try:
            if settings.rate is not None:
                arrivals = poisson(settings.rate, Random(f"{settings.seed} arrivals"))
                await open_loop(ask, requests, arrivals=arrivals, seconds=settings.seconds, clock=clock)
            else:
                concurrency = settings.concurrency or 1
                await closed_loop(ask, requests, concurrency=concurrency, seconds=settings.seconds, clock=clock)
        finally:
            watcher.cancel()
            measurements.seconds = clock()


async def served_model(url: str, api_key: str | None) -> str:
    """The first model that ``GET /v1/models`` names: with this server and with vLLM, the base model.

    Raises:
        ConnectError: no server answers.
        GraftError: it has no such route or no model.
    """
    async with connections(url, api_key, _PATIENCE) as http:
        with translated(url):
            response = await http.get("/v1/models")
    try:
        return str(response.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPStatusError, ValueError, TypeError, LookupError) as error:
        raise GraftError(f"{url}/v1/models names no model ({response.status_code}); give one with --model") from error


def requests_of(settings: BenchSettings) -> Iterator[Planned]:
    """A run's requests, without end."""
    return workload(
        settings.models,
        popularity=settings.popularity,
        exponent=settings.zipf_exponent,
        prompt_tokens=settings.prompt_tokens,
        output_tokens=settings.output_tokens,
        seed=settings.seed,
    )


async def _warm_up(http: httpx.AsyncClient, settings: BenchSettings) -> None:
    """Sends the models' first requests in turn, so that adapters are loaded and connections are open."""
    exchange, measurements = Exchange(http, settings, time.perf_counter), Measurements()
    # Prompts of another seed: the run's own must not be known to the server's prefix cache.
    drawn = requests_of(settings.model_copy(update={"seed": settings.seed - 1}))
    planned = (
        Planned(model, request.prompt, request.words, request.output_tokens)
        for model, request in zip(cycle(settings.models), drawn, strict=False)
    )

    async def ask(request: Planned, due: float) -> bool:
        return (await exchange.ask(request, due, measurements)).failure is None

    concurrency = min(_WARMUP_CONCURRENCY, settings.concurrency or _WARMUP_CONCURRENCY)
    requests = islice(planned, settings.warmup)
    await closed_loop(ask, requests, concurrency=concurrency, seconds=None, clock=time.perf_counter)
    if settings.warmup and not measurements.answered:
        failure = measurements.records[0].failure
        assert failure is not None
        kind = ConnectError if failure.kind == "connect" else GraftError
        raise kind(f"{settings.url} answered no request of the warm-up: {failure.kind}: {failure.message}")


async def _watch(measurements: Measurements, clock: Callable[[], float], tell: Tell) -> None:
    while True:
        due = clock() + _LOOK_EVERY
        await asyncio.sleep(_LOOK_EVERY)
        measurements.lags.append(max(0.0, clock() - due))
        measurements.seconds = clock()
        tell(measurements)
