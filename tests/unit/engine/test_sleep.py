"""A supervised engine leaves its device to a training job: what is in progress ends first, and what comes waits."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from graft_server.engine import supervisor
from graft_server.engine.base import (
    EngineUnavailableError,
    GenerateRequest,
    InvalidRequestError,
    PromptInput,
    SamplingParams,
)
from graft_server.engine.messages import EngineConfig
from graft_server.engine.process import start_engine
from graft_server.engine.supervisor import SupervisedEngine
from support import sleeping_engine
from support.waiting import until


@pytest.fixture(autouse=True)
def without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "PROCESS", sleeping_engine.__name__)
    suites = str(Path(sleeping_engine.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([suites, *filter(None, [os.environ.get("PYTHONPATH")])]))


@asynccontextmanager
async def started(*, sleeps: bool = True) -> AsyncIterator[SupervisedEngine]:
    engine = SupervisedEngine(EngineConfig("vllm", "tiny", "", sleeps=sleeps))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def ask(engine: SupervisedEngine, text: str) -> str:
    request = GenerateRequest(text, PromptInput(text=text), SamplingParams())
    return "".join([delta.text async for delta in engine.generate(request)])


async def test_what_is_in_progress_ends_and_what_comes_waits() -> None:
    async with started() as engine:
        first = asyncio.create_task(ask(engine, "slow"))
        await asyncio.sleep(0)
        asked = time.monotonic()
        await engine.sleep()
        assert time.monotonic() - asked >= sleeping_engine.SLOW / 2
        assert first.done()
        assert engine.state == "asleep"
        assert "a training job has the device" in (engine.error or "")
        waiting = asyncio.create_task(ask(engine, "quick"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await engine.wake()
        assert await waiting == "hello"
        assert (engine.state, engine.error, engine.restarts) == ("ready", None, 0)


async def test_who_goes_away_while_it_sleeps_leaves_nothing_behind() -> None:
    async with started() as engine:
        await engine.sleep()
        waiting = asyncio.create_task(ask(engine, "quick"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await engine.wake()
        assert await ask(engine, "quick") == "hello"
        assert engine.restarts == 0


async def test_an_unload_is_told_when_it_wakes() -> None:
    async with started() as engine:
        await engine.sleep()
        await engine.unload(7)
        await engine.unpin(7)
        await engine.wake()
        assert (await engine.stats()).loaded == ("7",)
        assert engine.restarts == 0


async def test_one_that_dies_asleep_comes_back_when_it_is_to_wake() -> None:
    async with started() as engine:
        await engine.sleep()
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        waiting = asyncio.create_task(ask(engine, "quick"))
        await until(lambda: engine.restarts == 1)
        assert engine.state == "asleep"
        assert not waiting.done()
        await engine.wake()
        assert await asyncio.wait_for(waiting, 20) == "hello"
        assert engine.state == "ready"


async def test_one_that_dies_while_it_ends_its_requests_sleeps_when_they_have_been_replayed() -> None:
    async with started() as engine:
        first = asyncio.create_task(ask(engine, "slow"))
        await asyncio.sleep(0.05)
        assert engine.pid is not None
        going = asyncio.create_task(engine.sleep())
        await asyncio.sleep(0)
        os.kill(engine.pid, signal.SIGKILL)
        await asyncio.wait_for(going, 20)
        assert engine.state == "asleep"
        await engine.wake()
        assert await asyncio.wait_for(first, 20) == "hello"


async def test_the_server_can_stop_while_it_sleeps() -> None:
    async with started() as engine:
        await engine.sleep()
    assert engine.state == "stopped"


async def test_an_engine_that_cannot_sleep_says_so() -> None:
    async with started(sleeps=False) as engine:
        with pytest.raises(InvalidRequestError, match="can't sleep"):
            await engine.sleep()
        assert engine.state == "ready"


def test_the_torch_engine_refuses_at_the_start() -> None:
    with pytest.raises(EngineUnavailableError, match="torch engine can't sleep; set engine"):
        start_engine(EngineConfig("torch", "tiny", "", sleeps=True), None)  # type: ignore[arg-type]


async def test_one_that_cant_wake_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    monkeypatch.setenv(sleeping_engine.CANT_WAKE, str(flag))
    async with started() as engine:
        await engine.sleep()
        waiting = asyncio.create_task(ask(engine, "quick"))
        await engine.wake()
        assert await asyncio.wait_for(waiting, 10) == "hello"
        assert (engine.state, engine.restarts) == ("ready", 1)


async def test_supervision_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with started() as engine:
        waiting = asyncio.create_task(ask(engine, "slow"))
        await asyncio.sleep(0)
        monkeypatch.setattr(engine, "_after_death", lambda code: 1 / 0)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineUnavailableError, match="supervision failed"):
            await asyncio.wait_for(waiting, 10)
        assert engine.state == "failed"
        with pytest.raises(EngineUnavailableError):
            await ask(engine, "quick")


@pytest.mark.parametrize(
    ("text", "max_tokens", "error"), [("\ud83d", 4, UnicodeEncodeError), ("quick", 1 << 64, InvalidRequestError)]
)
async def test_what_cant_be_said_to_an_engine_harms_none_but_its_caller(
    text: str, max_tokens: int, error: type[Exception]
) -> None:
    async with started() as engine:
        unsayable = GenerateRequest("unsayable", PromptInput(text=text), SamplingParams(max_tokens=max_tokens))
        with pytest.raises(error):
            await anext(aiter(engine.generate(unsayable)))
        # Nothing waits for its answer, and nothing of it is said to the next engine.
        await asyncio.wait_for(engine.sleep(), 10)
        await engine.wake()
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: engine.restarts == 1 and engine.state == "ready")
        assert await asyncio.wait_for(ask(engine, "quick"), 10) == "hello"
