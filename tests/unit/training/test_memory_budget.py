"""What the engine and the jobs may take of one device, as the settings say, and the turns that they take."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from graft_client.errors import UsageError
from graft_server.config import Settings
from graft_server.engine.base import EngineUnavailableError
from graft_server.training.device_turns import DeviceTurns
from graft_server.training.memory_budget import check_memory_budget


def settings(**values: Any) -> Settings:
    return Settings(base_model="tiny", **values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"engine_memory": 0.6, "training_memory": 0.4},
        {"engine_memory": 0.1, "training_memory": 0.3, "max_jobs": 3},
        {"engine_memory": 0.9},
        {"engine_memory": 0.9, "training_memory": 0.9, "training_device": "cuda:1"},
        {"engine_memory": 0.9, "training_memory": 0.9, "device": "cuda:0", "training_device": "cpu"},
        {"engine_memory": 0.9, "training_memory": 0.9, "sleep_while_training": True},
        {"engine_memory": 0.9, "training_memory": 0.9, "max_jobs": 0},
    ],
)
def test_what_fits(values: dict[str, Any]) -> None:
    check_memory_budget(settings(**values))


@pytest.mark.parametrize(
    ("values", "total"),
    [
        ({"engine_memory": 0.9, "training_memory": 0.2}, "1.1"),
        ({"engine_memory": 0.9, "training_memory": 0.2, "device": "cuda", "training_device": "cuda:0"}, "1.1"),
        ({"engine_memory": 0.5, "training_memory": 0.3, "max_jobs": 2}, "1.1"),
        ({"engine_memory": 0.9, "training_memory": 0.6, "max_jobs": 2, "sleep_while_training": True}, "1.2"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_sum_and_the_ways_out(values: dict[str, Any], total: str) -> None:
    with pytest.raises(UsageError, match=f"are {total} of one device; .*training_device of their own"):
        check_memory_budget(settings(**values))


class Engine:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.refuses = False

    async def sleep(self) -> None:
        if self.refuses:
            raise EngineUnavailableError("no")
        self.told.append("sleep")

    async def wake(self) -> None:
        self.told.append("wake")


async def test_the_engine_sleeps_until_the_last_job_has_trained() -> None:
    engine = Engine()
    turns, second_may_end = DeviceTurns(engine), asyncio.Event()

    async def second() -> None:
        async with turns.training():
            await second_may_end.wait()

    async with turns.training():
        other = asyncio.create_task(second())
        await asyncio.sleep(0.01)
    assert engine.told == ["sleep"]
    second_may_end.set()
    await other
    assert engine.told == ["sleep", "wake"]


async def test_a_job_that_fails_wakes_the_engine() -> None:
    engine = Engine()
    turns = DeviceTurns(engine)
    with pytest.raises(ZeroDivisionError):
        async with turns.training():
            raise ZeroDivisionError
    assert engine.told == ["sleep", "wake"]


async def test_no_job_trains_beside_an_engine_that_would_not_sleep() -> None:
    engine = Engine()
    turns, trained = DeviceTurns(engine), False
    engine.refuses = True
    with pytest.raises(EngineUnavailableError):
        async with turns.training():
            trained = True
    assert not trained
    engine.refuses = False
    async with turns.training():
        pass
    assert engine.told == ["sleep", "wake"]
