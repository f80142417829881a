"""An engine in memory whose answers follow from the prompt, with delays, failures and death at a test's command."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import AsyncIterator, Callable, Sequence

from graft_server.engine.base import (
    AdapterLoadError,
    AdapterSource,
    Capabilities,
    Delta,
    EchoedPrompt,
    Embeddings,
    EngineDiedError,
    EngineStats,
    EngineUnavailableError,
    GenerateRequest,
    InvalidRequestError,
    ModelInfo,
    PromptInput,
    PromptTooLongError,
    Scored,
    ScoreRequest,
    ScoreResult,
    TokenLogprob,
)

FINGERPRINT = "f" * 64


def last_words(prompt: PromptInput) -> str:
    """The text of a prompt that an answer is made of: the last message's, or the prompt's own."""
    if prompt.tokens:
        return " ".join(map(str, prompt.tokens))
    return prompt.text if prompt.text is not None else prompt.messages[-1].content


class ScriptedEngine:
    """Answers each prompt with its own last words, behind the adapter's name: ``de@1: Turn off``.

    ``hold`` makes requests wait for ``release``; ``answer`` replaces the answering; ``die`` ends what is in flight.
    """

    def __init__(self, *, context: int = 1000, methods: Sequence[str] = ("lora", "rslora"), slots: int = 4) -> None:
        self.state = "ready"
        self.error: str | None = None
        self.restarts = 0
        self.capabilities = Capabilities(
            engine="scripted",
            methods=tuple(methods),
            max_rank=32,
            slots=slots,
            constraints=("choices",),
            device="cpu",
            dtype="float32",
        )
        self.model = ModelInfo(
            name="tiny",
            fingerprint=FINGERPRINT,
            path="/models/tiny",
            architecture="TinyForCausalLM",
            context_length=context,
            parameters=1,
        )
        self.context = context
        self.answer: Callable[[GenerateRequest], str] = lambda request: (
            f"{request.adapter.ref if request.adapter else 'base'}: {last_words(request.prompt)}"
        )
        self.unloadable: str | None = None
        self.requests: list[GenerateRequest | ScoreRequest] = []
        self.running: set[str] = set()
        self.most_running = 0
        self.loaded: tuple[str, ...] = ()
        self.preemptions = 0
        self.aborted: list[str] = []
        self.unloaded: list[int] = []
        self.pinned: dict[int, AdapterSource] = {}
        self.prefetched: list[AdapterSource] = []
        self.validated: list[AdapterSource] = []
        self._go = asyncio.Event()
        self._go.set()
        self._changed = asyncio.Event()
        self._dead = False
        self._start_error: str | None = None

    # What a test does with it

    def hold(self) -> None:
        """Requests stop before their first text."""
        self._go.clear()

    def release(self) -> None:
        self._go.set()

    def die(self) -> None:
        """Everything in flight ends with an ``EngineDiedError``."""
        self._dead = True
        self._go.set()

    async def until(self, condition: Callable[[ScriptedEngine], bool]) -> None:
        """Wait until a condition over this engine holds."""
        async with asyncio.timeout(10):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()

    # The engine contract

    async def start(self) -> None:
        self.state = "ready"

    async def stop(self) -> None:
        self.state = "stopped"

    async def sleep(self) -> None:
        self.state, self.error = "asleep", "a job has the device"

    async def wake(self) -> None:
        self.state, self.error = "ready", None

    async def validate(self, source: AdapterSource) -> None:
        self.validated.append(source)
        if self.unloadable:
            raise AdapterLoadError(self.unloadable)

    async def load(self, source: AdapterSource) -> None:
        pass

    def prefetch(self, source: AdapterSource) -> None:
        self.prefetched.append(source)

    async def pin(self, source: AdapterSource) -> None:
        if self.unloadable:
            raise AdapterLoadError(self.unloadable)
        if source.engine_id not in self.pinned and len(self.pinned) >= self.capabilities.slots - 1:
            raise InvalidRequestError(f"{source.ref} can't be pinned: only one slot is left")
        self.pinned[source.engine_id] = source

    async def unpin(self, engine_id: int) -> None:
        self.pinned.pop(engine_id, None)

    async def unload(self, engine_id: int) -> None:
        self.pinned.pop(engine_id, None)
        self.unloaded.append(engine_id)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta]:
        prompt_tokens = self._enter(request)
        finished = False
        try:
            await self._wait()
            words = self.answer(request).split(" ")
            length = len(words) > request.sampling.max_tokens
            words = words[: request.sampling.max_tokens]
            logprobs = request.sampling.logprobs
            prompt = _echoed(last_words(request.prompt), logprobs or 0) if request.echo else None
            for number, word in enumerate(words):
                text = word if number == 0 else f" {word}"
                tokens = () if logprobs is None else (_told(text, -0.5, logprobs),)
                if number > 0:
                    await asyncio.sleep(0)
                    await self._wait()
                yield Delta(text=text, tokens=tokens, prompt=prompt if number == 0 else None)
            finished = True
            yield Delta(
                finish_reason="length" if length else "stop",
                prompt_tokens=prompt_tokens,
                completion_tokens=len(words),
                prompt=None if words else prompt,
            )
        finally:
            self._leave(request.id, finished)

    async def score(self, request: ScoreRequest) -> ScoreResult:
        prompt_tokens = self._enter(request)
        finished = False
        try:
            await self._wait()
            finished = True
            scores = tuple(Scored(_likelihood(request.prompt, text), len(text.split())) for text in request.candidates)
            return ScoreResult(scores, prompt_tokens, sum(score.tokens for score in scores))
        finally:
            self._leave(request.id, finished)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """A direction for each number of words; a word is a token."""
        if self.state != "ready":
            raise EngineUnavailableError(self.error or "the engine is not running")
        counts = [len(text.split()) for text in texts]
        if max(counts, default=0) > self.context:
            raise PromptTooLongError(f"a text has {max(counts)} tokens, the context {self.context}")
        await self._wait()
        return Embeddings([[math.cos(count), math.sin(count)] for count in counts], sum(counts))

    async def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self.running),
            loaded=(*self.loaded, *(source.ref for source in self.pinned.values())),
            slots=self.capabilities.slots,
            preemptions=self.preemptions,
        )

    def _enter(self, request: GenerateRequest | ScoreRequest) -> int:
        if self.state != "ready":
            raise EngineUnavailableError(self.error or "the engine is not running")
        self.requests.append(request)
        texts = [message.content for message in request.prompt.messages] or [request.prompt.text or ""]
        tokens = len(request.prompt.tokens) or sum(len(text.split()) for text in texts)
        if tokens > self.context:
            raise PromptTooLongError(f"the prompt has {tokens} tokens, the context {self.context}")
        if request.adapter is not None and self.unloadable:
            raise AdapterLoadError(self.unloadable)
        self.running.add(request.id)
        self.most_running = max(self.most_running, len(self.running))
        self._changed.set()
        return tokens

    async def _wait(self) -> None:
        await self._go.wait()
        if self._dead:
            raise EngineDiedError("the engine's process ended (signal SIGKILL) during the answer")

    def _leave(self, request_id: str, finished: bool) -> None:
        self.running.discard(request_id)
        if not finished:
            self.aborted.append(request_id)
        self._changed.set()


def _echoed(text: str, alternatives: int) -> EchoedPrompt:
    """A prompt's words as tokens, the n-th behind the first with the log-probability -n."""
    first, *others = re.findall(r"\s*\S+|\s+$", text)
    told = (_told(word, -1.0 * number, alternatives) for number, word in enumerate(others, start=1))
    return EchoedPrompt(text, first.encode(), tuple(told))


def _told(text: str, logprob: float, alternatives: int) -> TokenLogprob:
    return TokenLogprob(text.encode(), logprob, tuple((f"{text}{n}".encode(), -1.0 - n) for n in range(alternatives)))


def _likelihood(prompt: PromptInput, candidate: str) -> float:
    """Some log-probability, the same for the same words."""
    digest = hashlib.sha256(f"{last_words(prompt)}|{candidate}".encode()).digest()
    return -1.0 - digest[0] / 16
