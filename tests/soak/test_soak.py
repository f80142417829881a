"""Everything at once, for as long as you like: the engine in its own process, as a server runs it.

Callers come and go at random with adapters of every method and none; some hang up, adapters are loaded, fetched ahead,
pinned and unloaded, and the process is killed now and then. Every whole answer is compared with the reference, and at
the end nothing is left behind: no KV block, no slot in use, no call, and no more memory than after a while of work.

``make test`` runs it for a short while; ``make soak`` for ``SOAK_SECONDS``, ten minutes unless told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from graft_server.base_model import BaseModel, resolve
from graft_server.base_model.loading import load_model, load_tokenizer
from graft_server.engine.base import (
    AdapterSource,
    ConstraintSpec,
    EngineDiedError,
    GenerateRequest,
    InvalidRequestError,
    PromptInput,
    SamplingParams,
    ScoreRequest,
)
from graft_server.engine.messages import EngineConfig
from graft_server.engine.supervisor import SupervisedEngine
from support.adapters import greedy, random_adapter
from support.tiny_model import save_tiny_model

pytestmark = [pytest.mark.torch, pytest.mark.timeout(0)]

SECONDS = float(os.environ.get("SOAK_SECONDS", "20"))
CALLERS = 12
#: Seconds between two deaths of the engine's process: fewer than would make the supervisor give up.
KILL_EVERY = 45.0
#: Growth of the process's memory that is none: allocators keep some of what they had.
SLACK_BYTES = 64 << 20
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"r": 4}),
    ("lora", {"r": 16, "target_modules": "q_proj,v_proj"}),
    ("rslora", {"r": 8}),
    ("dora", {"r": 4}),
    ("bottleneck", {"r": 8}),
    ("output-head", {"r": 16}),
]
SHARED = "The rules of the house are long, and everyone reads them from the beginning. "
PROMPTS = ["Hello", "What is a beam?", f"{SHARED}One.", f"{SHARED}Two, and then some.", "x" * 90]
TOKENS = 10


class Reference:
    """What each adapter answers alone, computed when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.base: BaseModel = resolve(str(save_tiny_model(folder / "model")), folder / "cache")
        self.adapters: list[AdapterSource | None] = [None]
        self._models: list[Any] = [load_model(self.base, dtype="float32", device="cpu")]
        self._tokenizer = load_tokenizer(self.base)
        for i, (method, options) in enumerate(KINDS, start=1):
            source, model = random_adapter(self.base, method, folder / f"a{i}", seed=i, engine_id=i, **options)
            self.adapters.append(source)
            self._models.append(model)
        self._answers = {
            (adapter, prompt): self._answer(adapter, prompt)
            for adapter in range(len(self.adapters))
            for prompt in range(len(PROMPTS))
        }

    def answer(self, adapter: int, prompt: int) -> str:
        return self._answers[adapter, prompt]

    def _answer(self, adapter: int, prompt: int) -> str:
        ids = greedy(self._models[adapter], list(self._tokenizer(PROMPTS[prompt])["input_ids"]), TOKENS)
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class Soak:
    """Callers of one engine, and the count of what became of their requests."""

    def __init__(self, engine: SupervisedEngine, reference: Reference, seed: int, tell: Callable[[str], None]) -> None:
        self.engine = engine
        self.tell = tell
        self.reference = reference
        self.chance = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self._number = 0

    async def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._caller(until))
            group.create_task(self._operator(until))
            group.create_task(self._killer(until))
            group.create_task(self._teller(until))

    async def _caller(self, until: float) -> None:
        while time.monotonic() < until:
            self._number += 1
            adapter, prompt = self.chance.randrange(len(KINDS) + 1), self.chance.randrange(len(PROMPTS))
            kind = self.chance.choices(
                (self._whole, self._hang_up, self._score, self._constrained, self._embed), (8, 2, 1, 1, 1)
            )[0]
            try:
                await kind(f"r{self._number}", adapter, prompt)
                self.outcomes[kind.__name__.strip("_")] += 1
            except EngineDiedError:
                self.outcomes["died"] += 1

    async def _whole(self, name: str, adapter: int, prompt: int) -> None:
        deltas = [delta.text async for delta in self.engine.generate(self._request(name, adapter, prompt))]
        assert "".join(deltas) == self.reference.answer(adapter, prompt), f"adapter {adapter}, prompt {prompt}"

    async def _hang_up(self, name: str, adapter: int, prompt: int) -> None:
        patience = self.chance.random() * 0.05
        deltas = self.engine.generate(self._request(name, adapter, prompt))

        async def listen() -> None:
            async for _ in deltas:
                pass

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(listen(), patience)

    async def _score(self, name: str, adapter: int, prompt: int) -> None:
        text = PromptInput(text=PROMPTS[prompt])
        source = self.reference.adapters[adapter]
        result = await self.engine.score(ScoreRequest(name, text, ("a", "beam", "the lights"), source))
        assert len(result.scores) == 3

    async def _constrained(self, name: str, adapter: int, prompt: int) -> None:
        request = GenerateRequest(
            name,
            PromptInput(text=PROMPTS[prompt]),
            SamplingParams(max_tokens=TOKENS, temperature=1.0, seed=self._number),
            self.reference.adapters[adapter],
            ConstraintSpec("choices", choices=("yes", "no")),
        )
        text = "".join([delta.text async for delta in self.engine.generate(request)])
        assert text in ("yes", "no")

    async def _embed(self, name: str, adapter: int, prompt: int) -> None:
        (vector,) = await self.engine.embed([PROMPTS[prompt]])
        assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-3)

    def _request(self, name: str, adapter: int, prompt: int) -> GenerateRequest:
        sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
        return GenerateRequest(name, PromptInput(text=PROMPTS[prompt]), sampling, self.reference.adapters[adapter])

    async def _operator(self, until: float) -> None:
        """Loads, fetches ahead, pins, unpins and unloads."""
        while time.monotonic() < until:
            source = self.chance.choice([source for source in self.reference.adapters if source is not None])
            match self.chance.randrange(5):
                case 0:
                    await self.engine.load(source)
                case 1:
                    await self.engine.prefetch(source)
                case 2:
                    try:
                        await self.engine.pin(source)
                    except InvalidRequestError:
                        self.outcomes["pin refused"] += 1
                case 3:
                    await self.engine.unpin(source.engine_id)
                case 4:
                    await self.engine.unload(source.engine_id)
            await asyncio.sleep(self.chance.random() * 0.1)
        for source in self.reference.adapters:
            if source is not None:
                await self.engine.unpin(source.engine_id)

    async def _killer(self, until: float) -> None:
        pause = min(KILL_EVERY, SECONDS / 3)
        while time.monotonic() + pause < until:
            await asyncio.sleep(pause)
            assert self.engine.pid is not None
            os.kill(self.engine.pid, signal.SIGKILL)
            self.outcomes["kills"] += 1
            while self.engine.state != "ready":
                await asyncio.sleep(0.05)

    async def _teller(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(10.0, left))
            told = ", ".join(f"{count} {name}" for name, count in sorted(self.outcomes.items()))
            self.tell(f"{max(0.0, left - 10):.0f} s left: {told}")


async def test_nothing_is_lost_and_nothing_leaks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def tell(text: str) -> None:
        with capfd.disabled():
            print(text, flush=True)

    reference = Reference(tmp_path)
    config = EngineConfig(
        engine="torch",
        base_model=str(reference.base.path),
        cache_dir=str(tmp_path / "cache"),
        device="cpu",
        dtype="float32",
        kv_cache_mib=16,
        max_slots=3,
        max_batch_tokens=256,
        host_cache_mib=1,
    )
    engine = SupervisedEngine(config)
    await engine.start()
    try:
        soak = Soak(engine, reference, int(os.environ.get("SOAK_SEED", "7")), tell)
        await soak.run(SECONDS)
        # A process that has not been killed since: its memory must not grow with its work.
        memory = await _memory(engine)
        after = Soak(engine, reference, 8, tell)
        after_seconds = max(5.0, SECONDS / 4)
        await asyncio.gather(*(after._caller(time.monotonic() + after_seconds) for _ in range(CALLERS)))
        assert await _memory(engine) - memory < SLACK_BYTES
        # The engine checks its books when it comes to rest; one more request makes it do so now.
        await asyncio.sleep(1.1)
        await after._whole("last", 0, 0)
        await asyncio.sleep(0.2)
        stats = await engine.stats()
        assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)
        assert not engine._calls
        assert soak.outcomes["whole"] > 0
        assert soak.outcomes["kills"] > 0
        assert "books" not in capfd.readouterr().err
    finally:
        await engine.stop()


async def _memory(engine: SupervisedEngine) -> int:
    assert engine.pid is not None
    return int(psutil.Process(engine.pid).memory_info().rss)
