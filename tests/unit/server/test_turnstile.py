"""The gate on an event loop: waiting, giving up, deadlines, and what is said ahead to the engine."""

from __future__ import annotations

import asyncio

import pytest

from graft_server.admission.deadlines import DeadlineError, before
from graft_server.admission.gate import FullError, Gate
from graft_server.admission.turnstile import Turnstile
from graft_server.engine.base import AdapterSource


def source(engine_id: int) -> AdapterSource:
    return AdapterSource(f"a{engine_id}@1", engine_id, "", "lora")


class Holder:
    """Somebody who holds a place until told to leave."""

    def __init__(self, turnstile: Turnstile, engine_id: int, **options: object) -> None:
        self.inside, self.leave = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._hold(turnstile, engine_id, options))

    async def _hold(self, turnstile: Turnstile, engine_id: int, options: dict) -> None:
        async with turnstile.enter(source(engine_id), **options):
            self.inside.set()
            await self.leave.wait()

    async def end(self) -> None:
        self.leave.set()
        await self.task


async def test_a_caller_that_gives_up_while_waiting_frees_its_place() -> None:
    turnstile = Turnstile(Gate(slots=1, max_running=1, max_queued=1))
    holder = Holder(turnstile, 1)
    await holder.inside.wait()
    waiting = Holder(turnstile, 2)
    while not turnstile.gate.waiting:
        await asyncio.sleep(0)
    with pytest.raises(FullError):
        await Holder(turnstile, 3).task
    waiting.task.cancel()
    await asyncio.gather(waiting.task, return_exceptions=True)
    assert turnstile.gate.waiting == 0
    next_one = Holder(turnstile, 2)
    next_one.leave.set()
    await holder.end()
    await next_one.task
    assert turnstile.gate.running == 0


async def test_a_deadline_ends_the_waiting_and_nothing_else() -> None:
    turnstile = Turnstile(Gate(slots=1, max_running=1, max_queued=2))
    loop = asyncio.get_running_loop()
    holder = Holder(turnstile, 1, deadline=loop.time() + 0.02)
    await holder.inside.wait()
    with pytest.raises(DeadlineError) as late:
        async with turnstile.enter(source(1), deadline=loop.time() + 0.02):
            pass
    assert late.value.waiting
    assert turnstile.gate.waiting == 0
    await asyncio.sleep(0.02)
    assert turnstile.gate.running == 1
    await holder.end()


async def test_a_time_out_that_is_somebody_elses_passes_through() -> None:
    async def fail() -> None:
        raise TimeoutError("the disk")

    with pytest.raises(TimeoutError, match="the disk"):
        await before(asyncio.get_running_loop().time() + 10, fail())


async def test_a_version_is_told_ahead_when_it_is_first_waited_for() -> None:
    told: list[int] = []
    gate = Gate(slots=1, max_running=4, max_queued=100)
    turnstile = Turnstile(gate, on_enqueue=lambda source: told.append(source.engine_id))
    first = Holder(turnstile, 1)
    await first.inside.wait()
    assert told == [], "it needs no telling: the request itself is in the engine"
    others = [Holder(turnstile, engine_id) for engine_id in (2, 2, 3, 1)]
    while gate.waiting_by_adapter != {2: 2, 3: 1}:
        await asyncio.sleep(0)
    assert told == [2, 3]
    for holder in (first, *others):
        holder.leave.set()
    await asyncio.gather(first.task, *(holder.task for holder in others))


async def test_the_time_of_a_token_reaches_the_pace() -> None:
    turnstile = Turnstile(Gate(slots=1, max_running=1, max_queued=1))
    for _ in range(30):
        async with turnstile.enter(None) as visit:
            assert visit.waited < 1
            visit.token_seconds = 0.05
            await asyncio.sleep(0)
    assert turnstile.gate.pace._sizes[1][2] == pytest.approx(0.05)
