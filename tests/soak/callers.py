"""Who uses the engine in a soak: callers with requests of every kind, an operator, and somebody who kills it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from graft_server.engine.base import (
    AdapterLoadError,
    AdapterSource,
    ConstraintSpec,
    EngineDiedError,
    GenerateRequest,
    InvalidRequestError,
    PromptInput,
    PromptTooLongError,
    SamplingParams,
    ScoreRequest,
)
from graft_server.engine.supervisor import SupervisedEngine
from soak.reference import CANDIDATES, PROMPTS, TOKENS, Reference

CALLERS = 24
#: The share of calls whose caller does not wait for the end, and the longest that it waits.
IMPATIENT = 0.2
PATIENCE = 0.15

Call = Callable[[], Awaitable[None]]


class Callers:
    """Random calls of one engine; a wrong answer is an ``AssertionError``. ``outcomes`` counts what became of them."""

    def __init__(self, engine: SupervisedEngine, reference: Reference, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._engine = engine
        self._reference = reference
        self._chance = random.Random(seed)
        self._numbers = 0
        #: The first answer to each seeded request; every later one must be the same.
        self._seeded: dict[tuple[int, int, int], str] = {}

    async def run(self, seconds: float, *, kill_after: float | None = None) -> None:
        """All of them for a while. ``kill_after`` seconds the engine's process dies, and they go on."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._calls(until, self._request_kinds(), pause=0.0))
            group.create_task(self._calls(until, self._operator_kinds(), pause=0.05))
            if kill_after is not None:
                group.create_task(self._kill(kill_after))
        for source in self._reference.sources:
            await self._engine.unpin(source.engine_id)

    async def _calls(self, until: float, kinds: dict[str, tuple[int, Call]], *, pause: float) -> None:
        weights = [weight for weight, _ in kinds.values()]
        while time.monotonic() < until:
            name = self._chance.choices(list(kinds), weights)[0]
            _, call = kinds[name]
            if self._chance.random() < IMPATIENT:
                try:
                    await asyncio.wait_for(call(), self._chance.random() * PATIENCE)
                except TimeoutError:
                    name = "given up"
            else:
                await call()
            self.outcomes[name] += 1
            await asyncio.sleep(pause)

    async def _kill(self, after: float) -> None:
        await asyncio.sleep(after)
        assert self._engine.pid is not None
        os.kill(self._engine.pid, signal.SIGKILL)
        self.outcomes["kills"] += 1

    # Requests

    def _request_kinds(self) -> dict[str, tuple[int, Call]]:
        return {
            "greedy": (16, self._greedy),
            "seeded": (3, self._sampled),
            "long": (3, self._long),
            "constrained": (2, self._constrained),
            "scored": (3, self._score),
            "embedded": (2, self._embed),
            "broken adapter": (1, self._broken),
            "too long": (1, self._too_long),
        }

    def _name(self) -> str:
        self._numbers += 1
        return f"request {self._numbers}"

    def _case(self) -> tuple[int, int]:
        """An adapter and a prompt."""
        return self._chance.randrange(len(self._reference.adapters)), self._chance.randrange(len(PROMPTS))

    async def _text(self, case: tuple[int, int], sampling: SamplingParams, bound: ConstraintSpec | None = None) -> str:
        """The whole answer; ``EngineDiedError`` only where some of it had come."""
        adapter, prompt = case
        source, pieces = self._reference.adapters[adapter], self._chance.choice((1, 1, 4))
        asked = GenerateRequest(
            self._name(), PromptInput(text=PROMPTS[prompt]), sampling, source, bound, tokens_per_delta=pieces
        )
        text: str | None = None
        try:
            async for delta in self._engine.generate(asked):
                text = (text or "") + delta.text
        except EngineDiedError:
            assert text is not None, "a request that had streamed nothing was not replayed"
            raise
        return text or ""

    async def _greedy(self) -> None:
        case = self._case()
        try:
            text = await self._text(case, SamplingParams(max_tokens=TOKENS, ignore_eos=True))
        except EngineDiedError:
            self.outcomes["cut off by a kill"] += 1
            return
        assert text == self._reference.answers[case], f"adapter {case[0]}, prompt {case[1]}"

    async def _sampled(self) -> None:
        case, seed = self._case(), self._chance.randrange(2)
        sampling = SamplingParams(max_tokens=6, temperature=1.0, top_p=0.9, seed=seed, ignore_eos=True)
        try:
            text = await self._text(case, sampling)
        except EngineDiedError:
            self.outcomes["cut off by a kill"] += 1
            return
        assert text == self._seeded.setdefault((*case, seed), text), f"seed {seed}, adapter {case[0]}, prompt {case[1]}"

    async def _long(self) -> None:
        """A prompt that nobody had before, and so large an answer that a few of them fill the KV cache."""
        prompt = "".join(self._chance.choices("abcdefgh ", k=300))
        sampling = SamplingParams(max_tokens=60, temperature=1.0, ignore_eos=True)
        source = self._chance.choice(self._reference.adapters)
        begun = False
        try:
            async for delta in self._engine.generate(
                GenerateRequest(self._name(), PromptInput(text=prompt), sampling, source)
            ):
                begun, last = True, delta
        except EngineDiedError:
            assert begun
            self.outcomes["cut off by a kill"] += 1
            return
        assert (last.finish_reason, last.prompt_tokens, last.completion_tokens) == ("length", 300, 60)

    async def _constrained(self) -> None:
        sampling = SamplingParams(max_tokens=TOKENS, temperature=1.0, seed=self._numbers)
        try:
            text = await self._text(self._case(), sampling, ConstraintSpec("choices", choices=("yes", "no")))
        except EngineDiedError:
            self.outcomes["cut off by a kill"] += 1
            return
        assert text in ("yes", "no")

    async def _score(self) -> None:
        adapter, prompt = self._case()
        asked = PromptInput(text=PROMPTS[prompt])
        source = self._reference.adapters[adapter]
        result = await self._engine.score(ScoreRequest(self._name(), asked, CANDIDATES, source))
        found = [scored.logprob for scored in result.scores]
        assert found == pytest.approx(self._reference.scores[adapter, prompt], rel=1e-4, abs=1e-3)

    async def _embed(self) -> None:
        prompts = [self._case()[1] for _ in range(3)]
        embedded = await self._engine.embed([PROMPTS[prompt] for prompt in prompts])
        for prompt, vector in zip(prompts, embedded.vectors, strict=True):
            assert vector == pytest.approx(self._reference.vectors[prompt], abs=1e-4)

    async def _broken(self) -> None:
        asked = GenerateRequest(self._name(), PromptInput(text="Hello"), adapter=self._reference.broken)
        with pytest.raises(AdapterLoadError, match="broken@1"):
            async for _ in self._engine.generate(asked):
                pass

    async def _too_long(self) -> None:
        with pytest.raises(PromptTooLongError):
            async for _ in self._engine.generate(GenerateRequest(self._name(), PromptInput(text="x" * 600))):
                pass

    # The operator

    def _operator_kinds(self) -> dict[str, tuple[int, Call]]:
        return {
            "load": (2, lambda: self._engine.load(self._adapter())),
            "prefetch": (2, self._prefetch),
            "pin": (2, self._pin),
            "unpin": (2, lambda: self._engine.unpin(self._adapter().engine_id)),
            "unload": (2, lambda: self._engine.unload(self._adapter().engine_id)),
            "check": (1, lambda: self._engine.validate(self._adapter())),
            "check of a broken one": (1, self._check_broken),
        }

    def _adapter(self) -> AdapterSource:
        return self._chance.choice(self._reference.sources)

    async def _prefetch(self) -> None:
        self._engine.prefetch(self._adapter())

    async def _pin(self) -> None:
        try:
            await self._engine.pin(self._adapter())
        except InvalidRequestError:
            self.outcomes["pin refused"] += 1

    async def _check_broken(self) -> None:
        with pytest.raises(AdapterLoadError, match="broken@1"):
            await self._engine.validate(self._reference.broken)
