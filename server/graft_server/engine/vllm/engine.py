"""The vLLM engine: the engine contract over vLLM, with our slots in front of it.

One event loop owns it. What comes of a request goes to the same ``Events`` sink as the torch engine's. When vLLM's core
dies this process ends too; the supervisor builds both again, loads the adapters and replays what had streamed nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from graft_plugins.method import AdapterMethod, LinearGraft
from graft_server.base_model.device import choose_dtype
from graft_server.base_model.loading import load_meta_model, load_tokenizer
from graft_server.base_model.prompt import stop_token_ids
from graft_server.base_model.source import BaseModel
from graft_server.engine.adapter_files import CONFIG, read_grafts
from graft_server.engine.base import (
    AdapterLoadError,
    AdapterSource,
    Capabilities,
    Embeddings,
    EngineError,
    EngineStats,
    EngineUnavailableError,
    GenerateRequest,
    InvalidRequestError,
    Scored,
    ScoreRequest,
    ScoreResult,
)
from graft_server.engine.events import Events
from graft_server.engine.inputs import Inputs
from graft_server.engine.integrity import require
from graft_server.engine.messages import EngineConfig
from graft_server.engine.slots import Slots
from graft_server.engine.token_bytes import TokenBytes
from graft_server.engine.token_rate import TokenRate
from graft_server.engine.vllm import refusals
from graft_server.engine.vllm.adapters import AdapterSlots
from graft_server.engine.vllm.answers import Answer
from graft_server.engine.vllm.first_token import check_first_token
from graft_server.engine.vllm.runtime import REFUSALS, EngineDeadError, Runtime, platform

logger = logging.getLogger(__name__)

_HEALTH_SECONDS = 1.0
#: The exit code of this process when vLLM's core has died.
CORE_DIED = 70


class FlushedEvents(Events, Protocol):
    """Where the engine reports to: here it is the engine that knows when something came."""

    def flush(self) -> None: ...


class VllmEngine:
    """vLLM with a base model, the adapters in its slots and the requests in progress.

    Raises:
        EngineUnavailableError: the configuration asks for what this build of vLLM can't do, or it can't load the model
            or compute with it.
    """

    def __init__(
        self, base: BaseModel, config: EngineConfig, methods: Mapping[str, AdapterMethod], events: FlushedEvents
    ) -> None:
        device = platform()
        if config.device != "auto" and config.device.partition(":")[0] != device:
            raise EngineUnavailableError(f'this vLLM is built for {device}, not {config.device}; set device = "auto"')
        if config.sleeps and device != "cuda":
            raise EngineUnavailableError(f"vLLM can't sleep on {device}, only on cuda; leave out sleep_while_training")
        rank = refusals.started_rank(config.max_rank)
        if rank is None:
            raise EngineUnavailableError(f"vLLM serves ranks up to {refusals.RANKS[-1]}; lower max_rank")
        self.base = base
        self.config = config
        self.tokenizer = load_tokenizer(base)
        self._token_bytes = TokenBytes(self.tokenizer)
        self._model = load_meta_model(base)
        head = self._model.get_output_embeddings()
        self._head = next((name for name, module in self._model.named_modules() if module is head), None)
        text_config = self._model.config.get_text_config()
        dtype = choose_dtype(config.dtype, device)
        kv_bytes = config.kv_cache_mib << 20
        self._inputs = Inputs(
            self.tokenizer,
            context_length=base.context_length,
            cache_tokens=kv_bytes // _kv_bytes_per_token(text_config, dtype),
            vocabulary=int(text_config.vocab_size),
        )
        self._host_capacity = max(2 * config.max_slots, (config.host_cache_mib << 20) // _lora_bytes(self._model, rank))
        try:
            self.runtime = Runtime(
                str(base.path),
                dtype=dtype,
                max_model_len=self._inputs.longest,
                max_batch_tokens=config.max_batch_tokens,
                max_sequences=config.max_sequences,
                kv_cache_bytes=kv_bytes,
                max_loras=config.max_slots,
                max_rank=rank,
                max_cpu_loras=self._host_capacity + 1,
                memory=config.memory,
                sleeps=config.sleeps,
            )
        except (*REFUSALS, RuntimeError) as error:
            raise EngineUnavailableError(f"vLLM can't load {base.name}: {error}; {refusals.WAY_OUT}") from error
        self.adapters = AdapterSlots(
            Slots(config.max_slots),
            host_capacity=self._host_capacity,
            check=self._check,
            add=lambda source: self._alive(self.runtime.add_lora(source)),
            remove=lambda engine_id: self._alive(self.runtime.remove_lora(engine_id)),
        )
        self.capabilities = Capabilities(
            engine="vllm",
            methods=tuple(name for name in refusals.METHODS if name in methods),
            max_rank=config.max_rank,
            slots=config.max_slots,
            constraints=("choices", "regex", "json_schema"),
            device=device,
            dtype=dtype,
            otherwise=refusals.WAY_OUT,
            sleeps=config.sleeps,
        )
        self._methods = methods
        self._events = events
        self._stop_tokens = stop_token_ids(self.tokenizer, self._model.generation_config)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._rate = TokenRate()
        self._flushing = False
        #: Of the one event loop, which vLLM's own tasks stay on from the first token.
        self.runner = asyncio.Runner()
        try:
            self.runner.run(check_first_token(self.runtime, base.name))
        except EngineUnavailableError:
            self.close()
            raise

    # Requests

    def submit(self, request: GenerateRequest | ScoreRequest) -> None:
        """Take a request; everything that comes of it, errors included, goes to the events."""
        if request.id in self._tasks:
            self._events.error(request.id, InvalidRequestError(f"the request id {request.id!r} is in use"))
            return
        work = self._answer(request) if isinstance(request, GenerateRequest) else self._score(request)
        self._run(request.id, work)

    def abort(self, request_id: str) -> None:
        """Forget a request, wherever it is; nothing more is reported of it."""
        task = self._tasks.pop(request_id, None)
        if task is not None:
            task.cancel()

    def embed(self, request_id: str, texts: tuple[str, ...]) -> None:
        """vLLM embeds with models that it has loaded for that alone: this is an error, for the events."""
        if not texts:
            self._events.embedded(request_id, Embeddings([], 0))
            return
        hint = 'embed with engine = "torch"'
        self._events.error(
            request_id, InvalidRequestError(f"the vllm engine can't embed texts while it answers; {hint}")
        )

    def _run(self, request_id: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[request_id] = asyncio.get_running_loop().create_task(self._reported(request_id, work))

    def _flush_soon(self) -> None:
        """Send what has come once every request has taken its part of this step: they wake in one round of the loop."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._events.flush()

    def _fail(self, request_id: str, error: EngineError) -> None:
        self._events.flush()  # what had come before it
        self._events.error(request_id, error)

    async def _reported(self, request_id: str, work: Awaitable[None]) -> None:
        """Do some work, and report the error that it ends with."""
        own = asyncio.current_task()
        try:
            await work
        except EngineError as error:
            self._fail(request_id, error)
        except EngineDeadError:
            self._die()
        except REFUSALS as error:
            self._fail(request_id, InvalidRequestError(str(error)))
        except Exception as error:
            logger.exception("vLLM failed a request")
            self._fail(request_id, EngineError(f"vLLM failed: {error}"))
        finally:
            if self._tasks.get(request_id) is own:
                del self._tasks[request_id]

    async def _answer(self, request: GenerateRequest) -> None:
        arrived = time.monotonic()
        sampling = request.sampling
        tokens = self._inputs.prompt(request.prompt)
        room = self._inputs.room(len(tokens))
        self._inputs.check_sampling(sampling)
        own_end = frozenset() if sampling.ignore_eos and request.constraint is None else self._stop_tokens
        stop_tokens = frozenset(sampling.stop_token_ids) | own_end
        async with _Held(self.adapters, request.adapter):
            answer = Answer(
                prompt_tokens=len(tokens),
                tokens_per_delta=request.tokens_per_delta,
                stop_tokens=stop_tokens,
                decode=self._decode,
                whole=self._whole,
                piece=self._token_bytes,
                top=sampling.logprobs,
                echo=tuple(tokens) if request.echo else (),
                nothing=sampling.max_tokens == 0,
                queued_seconds=time.monotonic() - arrived,
            )
            stream = self.runtime.generate(
                request.id,
                tokens,
                sampling,
                max_tokens=min(sampling.max_tokens or 1, room),
                echo=request.echo,
                stop_tokens=stop_tokens,
                adapter=request.adapter,
                constraint=request.constraint,
            )
            async for output in stream:
                before = answer.generated
                delta = answer.take(output)
                self._rate.add(answer.generated - before)
                if delta is not None:
                    self._events.delta(request.id, delta)
                    self._flush_soon()

    async def _score(self, request: ScoreRequest) -> None:
        targets = self._inputs.candidates(request)
        prompt = self._inputs.prompt(request.prompt)
        if len(prompt) + max(map(len, targets)) >= self._inputs.longest:
            raise self._inputs.too_long(len(prompt))
        try:
            async with _Held(self.adapters, request.adapter), asyncio.TaskGroup() as group:
                scores = [
                    group.create_task(self._score_one(f"{request.id}/{at}", prompt, target, request.adapter))
                    for at, target in enumerate(targets)
                ]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed  # whoever reports it tells them apart by their types
        result = tuple(task.result() for task in scores)
        scored = sum(len(target) for target in targets)
        self._events.scored(request.id, ScoreResult(result, prompt_tokens=len(prompt), scored_tokens=scored))

    async def _score_one(
        self, request_id: str, prompt: list[int], target: list[int], adapter: AdapterSource | None
    ) -> Scored:
        tokens, total = [*prompt, *target], 0.0
        # The prompt is computed for one candidate and found by the others. Where the cache has some of the candidate
        # too, its log-probabilities are missing, and it is computed once more.
        for reuse in (True, False):
            stream = self.runtime.score(f"{request_id}/{reuse}", tokens, adapter, reuse=reuse)
            outputs = [output async for output in stream]
            if not reuse or outputs[-1].num_cached_tokens < len(prompt):
                rows = outputs[-1].prompt_logprobs[len(prompt) :]
                total = sum(float(row[token].logprob) for row, token in zip(rows, target, strict=True))
                break
        return Scored(total, len(target))

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _whole(self, tokens: Sequence[int]) -> str:
        """With special tokens, which may stand in a prompt."""
        return str(self.tokenizer.decode(list(tokens)))

    # Adapters

    def load(self, request_id: str, source: AdapterSource) -> None:
        """Bring a version into a slot; ``done`` or ``error`` is reported for ``request_id``."""
        self._run(request_id, self._then_done(request_id, self.adapters.load(source)))

    def validate(self, request_id: str, source: AdapterSource) -> None:
        """Read and check a version's files beside the steps, without a slot."""
        self._run(request_id, self._then_done(request_id, self.adapters.validate(source)))

    def pin(self, request_id: str, source: AdapterSource) -> None:
        """Load a version and keep it in its slot; ``done`` or ``error`` is reported for ``request_id``."""

        async def pin() -> None:
            try:
                await self.adapters.pin(source)
            except LookupError as error:
                hint = "unpin another version, or raise max_slots"
                raise InvalidRequestError(f"{source.ref} can't be pinned: {error}; {hint}") from error

        self._run(request_id, self._then_done(request_id, pin()))

    def unpin(self, engine_id: int) -> None:
        self.adapters.unpin(engine_id)

    def prefetch(self, source: AdapterSource) -> None:
        """Read a version's files, since a request for it is on its way. Errors are the request's."""

        async def fetch() -> None:
            try:
                await self.adapters.fetch(source)
            except Exception as error:
                logger.debug("%s was not fetched ahead: %s", source.ref, error)

        task = asyncio.get_running_loop().create_task(fetch())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def unload(self, engine_id: int) -> None:
        """Forget a version now, or as soon as nothing in flight uses it."""
        self.adapters.unload(engine_id)

    async def _then_done(self, request_id: str, work: Awaitable[None]) -> None:
        await work
        self._events.done(request_id)

    def _check(self, source: AdapterSource) -> None:
        """Everything that vLLM would refuse, or, worse, take without effect.

        Raises:
            AdapterLoadError: with the file, the tensor or the field at fault.
        """
        if source.method not in self.capabilities.methods:
            raise AdapterLoadError(
                f"{source.ref}: the vllm engine can't serve the method {source.method!r}; {refusals.WAY_OUT}"
            )
        grafts = list(read_grafts(source, self._methods, self._model, max_rank=self.config.max_rank))
        if not grafts:
            raise AdapterLoadError(f"{source.ref}: no tensor belongs to a module of {self.base.name}")
        if any(isinstance(graft, LinearGraft) and graft.module == self._head for graft in grafts):
            # A prompt's rows would get the update of whoever stands in the step where they stand in the prompt.
            layer = f"LoRA on the output layer {self._head!r}"
            raise AdapterLoadError(f"{source.ref}: the vllm engine can't serve {layer}; {refusals.WAY_OUT}")
        config = json.loads((Path(source.path) / CONFIG).read_text(encoding="utf-8"))
        reason = refusals.refusal(config)
        if reason is not None:
            raise AdapterLoadError(f"{source.ref}: {CONFIG}: {reason}")
        if refusals.largest_rank(config) > self.config.max_rank:
            raise AdapterLoadError(f"{source.ref}: {CONFIG}: a rank is above the server's max_rank")

    # The rest

    def sleep(self, request_id: str) -> None:
        """Move the weights to host memory and give up the cache; nothing may be in progress until ``wake``."""

        async def sleep() -> None:
            await self.adapters.settled()
            await self.runtime.sleep()

        self._run(request_id, self._then_done(request_id, sleep()))

    def wake(self, request_id: str) -> None:
        """Take the device again."""
        self._run(request_id, self._then_done(request_id, self.runtime.wake()))

    async def watch(self) -> None:
        """End this process when vLLM's core does: the supervisor starts both again."""
        while True:
            try:
                await self.runtime.check_health()
            except EngineDeadError:
                self._die()
            await asyncio.sleep(_HEALTH_SECONDS)

    async def _alive(self, work: Awaitable[None]) -> None:
        """Have vLLM do something for an adapter. That its core has died is no fault of the adapter's."""
        try:
            await work
        except EngineDeadError:
            self._die()

    def _die(self) -> None:
        logger.error("vLLM's core has died; ending the engine with it")
        os._exit(CORE_DIED)

    def stats(self) -> EngineStats:
        figures, slots = self.runtime.figures, self.adapters.slots
        running = len(self._tasks) - self.adapters.waiting
        return EngineStats(
            running=running,
            waiting=self.adapters.waiting,
            loaded=self.adapters.loaded,
            slots=slots.total,
            # vLLM tells it with a step, and there is none after the last request.
            kv_blocks_used=round(figures.kv_usage * self.runtime.kv_blocks) if self._tasks else 0,
            kv_blocks_total=self.runtime.kv_blocks,
            generated_tokens=self._rate.total,
            tokens_per_second=self._rate.per_second,
            preemptions=figures.preemptions,
            reused_tokens=figures.reused_tokens,
            evictions=slots.evictions,
            load_counts=tuple(self.adapters.loads.counts),
            load_seconds=self.adapters.loads.sum,
        )

    @property
    def idle(self) -> bool:
        return not self._tasks and not self.adapters.busy

    def check_integrity(self) -> None:
        """
        Raises:
            IntegrityError: an engine at rest holds something for requests that are gone.
        """
        require(self.idle, f"requests {list(self._tasks)} are left behind")
        self.adapters.check_integrity()

    def close(self) -> None:
        self.runner.close()
        self.adapters.close()
        self.runtime.close()


class _Held:
    """An adapter is in use while this is open; the base model needs no slot."""

    def __init__(self, adapters: AdapterSlots, source: AdapterSource | None) -> None:
        self._adapters = adapters
        self._source = source

    async def __aenter__(self) -> None:
        if self._source is not None:
            await self._adapters.acquire(self._source)

    async def __aexit__(self, *_: object) -> None:
        if self._source is not None:
            self._adapters.release(self._source.engine_id)


def _kv_bytes_per_token(config: Any, dtype: str) -> int:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * (4 if dtype == "float32" else 2))


def _lora_bytes(model: nn.Module, rank: int) -> int:
    """Host memory of an adapter of ``rank`` over all linear modules, two bytes a number."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return max(1, sum(2 * rank * (linear.in_features + linear.out_features) for linear in linears))
