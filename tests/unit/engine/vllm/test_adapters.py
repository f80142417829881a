"""Our slots in front of vLLM: never more adapters in flight than slots, and nothing left behind."""

from __future__ import annotations

import asyncio
import random

import pytest

from graft_server.engine.base import AdapterLoadError, AdapterSource
from graft_server.engine.slots import Slots
from graft_server.engine.vllm.adapters import AdapterSlots


class Recorder:
    """What vLLM is told."""

    def __init__(self) -> None:
        self.added: list[int] = []
        self.removed: list[int] = []
        self.adding = 0

    async def add(self, source: AdapterSource) -> None:
        self.adding += 1
        assert self.adding == 1, "two adapters are loaded at once"
        await asyncio.sleep(0)
        self.adding -= 1
        self.added.append(source.engine_id)

    async def remove(self, engine_id: int) -> None:
        self.removed.append(engine_id)


def source(engine_id: int) -> AdapterSource:
    return AdapterSource(f"a{engine_id}@1", engine_id, "", "lora")


def check(source: AdapterSource) -> None:
    if source.engine_id == 99:
        raise AdapterLoadError("weights are missing")


def make(slots: int = 2, host: int = 4) -> tuple[AdapterSlots, Recorder]:
    vllm = Recorder()
    return AdapterSlots(Slots(slots), host_capacity=host, check=check, add=vllm.add, remove=vllm.remove), vllm


@pytest.mark.parametrize("seed", range(5))
async def test_no_more_in_flight_than_slots_whatever_happens(seed: int) -> None:
    adapters, _ = make()
    chance = random.Random(seed)
    using: dict[int, int] = {}

    async def use(engine_id: int) -> None:
        await adapters.acquire(source(engine_id))
        using[engine_id] = using.get(engine_id, 0) + 1
        try:
            assert len(using) <= 2
            await asyncio.sleep(chance.random() / 500)
        finally:
            using[engine_id] -= 1
            if not using[engine_id]:
                del using[engine_id]
            adapters.release(engine_id)

    tasks = [asyncio.create_task(use(chance.randint(1, 6))) for _ in range(60)]
    for task in chance.sample(tasks, 15):
        await asyncio.sleep(0.001)
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [error for error in results if isinstance(error, Exception)]
    async with asyncio.timeout(5):
        while adapters.busy:
            await asyncio.sleep(0.001)
    adapters.check_integrity()


async def test_a_version_that_cannot_be_read_fails_and_takes_no_slot() -> None:
    adapters, vllm = make()
    with pytest.raises(AdapterLoadError, match="missing"):
        await adapters.pin(source(99))
    assert vllm.added == []
    adapters.check_integrity()


async def test_one_that_gives_up_as_the_load_fails_keeps_nobody_waiting() -> None:
    waiting: list[asyncio.Task[None]] = []

    async def fail(source: AdapterSource) -> None:
        waiting[0].cancel()
        raise AdapterLoadError("vLLM won't have it")

    adapters = AdapterSlots(Slots(2), host_capacity=4, check=check, add=fail, remove=Recorder().remove)
    waiting += [asyncio.create_task(adapters.acquire(source(1))) for _ in range(2)]
    async with asyncio.timeout(5):
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, AdapterLoadError]
    adapters.check_integrity()


async def test_unloading_waits_for_the_last_request_and_tells_vllm() -> None:
    adapters, vllm = make()
    await adapters.acquire(source(1))
    adapters.unload(1)
    await asyncio.sleep(0)
    assert vllm.removed == []
    adapters.release(1)
    await asyncio.sleep(0.01)
    assert vllm.removed == [1]
    assert adapters.loaded == ()


async def test_what_exceeds_host_memory_leaves_vllm_least_recently_used_first() -> None:
    adapters, vllm = make(slots=2, host=4)
    for engine_id in range(1, 7):
        await adapters.load(source(engine_id))
    assert vllm.removed == [1, 2]


async def test_settled_waits_for_what_is_read_and_loaded() -> None:
    adapters, vllm = make()
    loads = [asyncio.create_task(adapters.load(source(engine_id))) for engine_id in (1, 2)]
    await asyncio.sleep(0)
    assert adapters.busy
    await adapters.settled()
    assert not adapters.busy
    assert sorted(vllm.added) == [1, 2]
    await asyncio.gather(*loads)
