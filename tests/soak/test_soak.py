"""Everything at once, for as long as you like: the engine in its own process, as a server runs it.

Callers come and go at random with adapters of every method and none; some hang up, adapters are loaded, fetched ahead,
pinned and unloaded, and in the first half the process is killed now and then. Every answer is compared with the
reference. Between rounds of work nothing is left behind: no KV block, no call, no entry in the engine's books; and in
the second half the process's memory does not grow.

``make test`` runs it for a short while; ``make soak`` for ``SOAK_SECONDS``, ten minutes unless told.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from graft_server.engine.base import EngineStats
from graft_server.engine.messages import EngineConfig
from graft_server.engine.supervisor import SupervisedEngine
from soak.callers import Callers
from soak.reference import Reference

pytestmark = [pytest.mark.torch, pytest.mark.timeout(0)]

SECONDS = float(os.environ.get("SOAK_SECONDS", "20"))
SEED = int(os.environ.get("SOAK_SEED", "7"))
#: Rounds end with a rest, in which the books are checked.
ROUND = min(10.0, SECONDS / 5)
#: Seconds between two deaths of the engine's process at least: fewer would make the supervisor give up.
KILL_EVERY = 30.0
#: Growth of the process's memory, once warm, that is none: allocators keep some of what they had.
SLACK_MIB = 24.0
#: What a log line of a failed check has in it.
BREACH = "books don't balance"


class Soak:
    """Rounds of work and rest over one engine. ``tell`` prints a line at once."""

    def __init__(self, engine: SupervisedEngine, callers: Callers, tell: Callable[[str], None]) -> None:
        self._engine = engine
        self._callers = callers
        self._tell = tell
        self._begun = time.monotonic()
        #: The most that one of the engine's processes counted; each counts from zero.
        self.counted: Counter[str] = Counter()

    async def work(self, seconds: float, *, kill_every: float | None = None) -> None:
        """Rounds until so many seconds are over; those that are due for it have the process killed in the middle."""
        until, kill_at = time.monotonic() + seconds, time.monotonic()
        while (now := time.monotonic()) < until:
            kill = kill_every is not None and now >= kill_at
            if kill:
                kill_at = now + (kill_every or 0.0)
            await self._callers.run(ROUND, kill_after=ROUND / 2 if kill else None)
            await self._rest()

    async def _rest(self) -> None:
        """Wait until the engine has nothing to do, and longer than it takes for the next check of its books."""
        async with asyncio.timeout(30):
            while (await self._engine.stats()).running or self._engine._calls:
                await asyncio.sleep(0.05)
        await asyncio.sleep(1.1)
        stats = await self._engine.stats()
        assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)
        assert not self._engine._calls
        self._note(stats)
        answers = sum(self._callers.outcomes.values())
        passed, kills = time.monotonic() - self._begun, self._callers.outcomes["kills"]
        self._tell(f"{passed:5.0f} s  {answers:6} calls  {kills:2} kills  engine {self.memory():.0f} MiB")

    def _note(self, stats: EngineStats) -> None:
        self.counted["preemptions"] = max(self.counted["preemptions"], stats.preemptions)
        self.counted["tokens found in the cache"] = max(self.counted["tokens found in the cache"], stats.reused_tokens)
        self.counted["evictions"] = max(self.counted["evictions"], stats.evictions)

    def memory(self) -> float:
        """MiB of the engine's process in memory."""
        assert self._engine.pid is not None
        return float(psutil.Process(self._engine.pid).memory_info().rss) / (1 << 20)


def config(reference: Reference, folder: Path) -> EngineConfig:
    """Too little of everything: sequences push each other out of the KV cache, adapters out of slots and memory."""
    return EngineConfig(
        engine="torch",
        base_model=str(reference.base.path),
        cache_dir=str(folder / "cache"),
        device="cpu",
        dtype="float32",
        kv_cache_mib=1,
        max_slots=3,
        max_batch_tokens=256,
        host_cache_mib=1,
    )


async def test_nothing_is_lost_and_nothing_leaks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def tell(text: str) -> None:
        with capfd.disabled():
            print(text, flush=True)

    reference = Reference(tmp_path)
    engine = SupervisedEngine(config(reference, tmp_path))
    await engine.start()
    try:
        callers = Callers(engine, reference, SEED)
        soak = Soak(engine, callers, tell)
        await soak.work(SECONDS * 0.5, kill_every=KILL_EVERY)
        await soak.work(SECONDS * 0.2)
        before = soak.memory()
        await soak.work(SECONDS * 0.3)
        grown = soak.memory() - before
    finally:
        await engine.stop()
    for name, count in sorted([*callers.outcomes.items(), *soak.counted.items()]):
        tell(f"{name:<28}{count:>8}")
    tell(f"{'MiB grown, once warm':<28}{grown:>8.1f}")
    told = capfd.readouterr().err
    assert BREACH not in told, told
    assert grown < SLACK_MIB
    assert engine.restarts == callers.outcomes["kills"] > 0
    scarce = ("preemptions", "tokens found in the cache", "evictions")
    assert all(soak.counted[what] > 0 for what in scarce), soak.counted
