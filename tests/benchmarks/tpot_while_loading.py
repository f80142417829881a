"""The time per output token of requests that decode while other adapters are loaded, over that undisturbed.

16 callers decode on a supervised engine, as a server has it, one request of 64 new tokens after the other: of the base
model and 4 adapters in turn. So contexts are as long on both sides, whatever time a side takes. ``undisturbed`` is some
seconds of that, ``loading`` is the time in which 100 other adapters are loaded from disk (the operating system has
their files in its cache) one after another, each beginning when the one before is in its slot. Once all slots are in
use, each load displaces an adapter. The figure compares the 99th percentiles of all times between two tokens of one
request.

    PYTHONPATH=tests python tests/benchmarks/tpot_while_loading.py --base-model FOLDER
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from pathlib import Path

from adapters import sources, write_adapters
from options import Samples, parser, turns
from report import Figure, ratio, write_report

from graft_client.bench.statistics import percentile
from graft_server.base_model import BaseModel
from graft_server.bench.random_adapters import locate
from graft_server.engine.base import AdapterSource, GenerateRequest, PromptInput, SamplingParams
from graft_server.engine.messages import EngineConfig
from graft_server.engine.supervisor import SupervisedEngine

REQUESTS, ADAPTERS, LOADED = 16, 4, 100
#: With log-probabilities each token is told, also one that is no text.
SAMPLING = SamplingParams(max_tokens=64, ignore_eos=True, logprobs=0)
PROMPT = PromptInput(text="The fox said to the crow: ")


@asynccontextmanager
async def decoding(
    engine: SupervisedEngine, adapters: Sequence[AdapterSource | None]
) -> AsyncIterator[list[list[float]]]:
    """The moments at which the tokens of each request came so far, while all callers decode."""
    moments: list[list[float]] = []

    async def call(number: int) -> None:
        # They don't begin together, so they don't end together either.
        await asyncio.sleep(0.3 * number)
        while True:
            own: list[float] = []
            moments.append(own)
            request = GenerateRequest(f"{number}-{len(moments)}", PROMPT, SAMPLING, adapters[number % len(adapters)])
            # Closing the iterator is what ends the request.
            async with aclosing(engine.generate(request)) as deltas:
                # One at a time, as they come: whoever reads them now wants those of a request that still runs.
                async for _ in deltas:
                    own.append(time.perf_counter())  # noqa: PERF401

    tasks = [asyncio.create_task(call(number)) for number in range(REQUESTS)]
    try:
        while len(moments) < 2 * REQUESTS:
            await asyncio.sleep(0.05)
        yield moments
        assert not any(task.done() for task in tasks), "a caller gave up before the measurement ended"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def gaps_since(moments: Sequence[Sequence[float]], start: float) -> list[float]:
    """The times between two tokens of a request that both came behind ``start``, ascending."""
    return sorted(after - before for own in moments for before, after in pairwise(own[bisect_left(own, start) :]))


async def compare(base: BaseModel, scratch: Path, pairs: int, loaded: int, seconds: float) -> list[Figure]:
    folders = write_adapters(base, scratch / "adapters")
    config = EngineConfig(engine="torch", base_model=str(base.path), cache_dir=str(scratch / "cache"))
    engine = SupervisedEngine(config)
    await engine.start()
    adapters = [None, *sources(folders, range(1, ADAPTERS + 1))]
    others = sources(folders, range(ADAPTERS + 1, ADAPTERS + 1 + loaded))
    p50, p99 = Samples(), Samples()
    for _, side in turns(pairs, ("undisturbed", "loading")):
        async with decoding(engine, adapters) as moments:
            start = time.perf_counter()
            if side == "loading":
                for other in others:
                    await engine.load(other)
            else:
                await asyncio.sleep(seconds)
            gaps = gaps_since(moments, start)
        for other in others:
            await engine.unload(other.engine_id)
        p50[side].append(1000 * percentile(gaps, 50))
        p99.add(side, 1000 * percentile(gaps, 99), f"ms at p99 of {len(gaps)} gaps, {p50[side][-1]:.4g} ms at p50")
    await engine.stop()
    return [
        ratio("tpot_p99_while_loading", p99["loading"], p99["undisturbed"]),
        ratio("tpot_p50_while_loading", p50["loading"], p50["undisturbed"]),
    ]


def main() -> None:
    own = parser(__doc__)
    own.add_argument("--adapters", type=int, default=LOADED, help="to load")
    own.add_argument("--seconds", type=float, default=12.0, help="undisturbed")
    arguments = own.parse_args()
    base = locate(arguments.base_model)
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(compare(base, Path(folder), arguments.pairs, arguments.adapters, arguments.seconds))
    write_report("tpot_while_loading", figures)


if __name__ == "__main__":
    main()
