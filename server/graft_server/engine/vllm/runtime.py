"""All that the engine uses of vLLM, in one module: its interfaces move with every release.

``plugin`` and ``cpu_lora`` import it too, but are called by vLLM itself.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from graft_server.engine.vllm.plugin import BOUND

# Read when vLLM is imported. The engine's core is a process that must not be forked from one with threads.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ[BOUND] = "1"

from vllm import SamplingParams, TokensPrompt
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.loggers import StatLoggerBase

from graft_server.engine import base
from graft_server.engine.base import AdapterSource, ConstraintSpec

__all__ = ["REFUSALS", "EngineDeadError", "EngineGenerateError", "Runtime", "StepFigures", "platform"]

#: What vLLM raises for a request that it won't take as it stands.
REFUSALS = (VLLMClientError, ValueError)
#: On CPUs vLLM computes in a process of its own, which gets all cores but one; the core's process waits for each of its
#: steps in a busy loop on that one. In the core's own process all cores compute.
_IN_CORE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
#: Tokens in a block of the cache on CPUs, the fewest that its attention takes. Only whole blocks are reused, and by
#: default they have 128 tokens, which few prompts of a small model fill.
_CPU_BLOCK = 32
#: Alternatives that a request may ask for with each token.
_MOST_LOGPROBS = 64


def platform() -> str:
    """The device that this build of vLLM computes on: ``cpu`` or ``cuda``."""
    return "cpu" if current_platform.is_cpu() else str(current_platform.device_type)


@dataclass(slots=True)
class StepFigures:
    """What vLLM last told of itself."""

    kv_usage: float = 0.0
    preemptions: int = 0
    reused_tokens: int = 0


class _Listener(StatLoggerBase):  # type: ignore[misc]
    def __init__(self, figures: StepFigures) -> None:
        self._figures = figures

    def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
        if scheduler_stats is not None:
            self._figures.kv_usage = scheduler_stats.kv_cache_usage
            self._figures.reused_tokens += scheduler_stats.prefix_cache_stats.hits
        if iteration_stats is not None:
            self._figures.preemptions += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


class Runtime:
    """vLLM's ``AsyncLLM`` with the arguments that this engine relies on."""

    def __init__(
        self,
        path: str,
        *,
        dtype: str,
        max_model_len: int,
        max_batch_tokens: int,
        max_sequences: int,
        kv_cache_bytes: int,
        max_loras: int,
        max_rank: int,
        max_cpu_loras: int,
        memory: float | None,
        sleeps: bool,
    ) -> None:
        self.figures = StepFigures()
        on_cpu = platform() == "cpu"
        # It would be stronger than the argument, and is in whole GiB.
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
        if on_cpu:
            # Else vLLM compiles a small function for the first request with log-probabilities, for half a minute, while
            # everybody waits; as it stands it takes milliseconds.
            os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
        arguments = AsyncEngineArgs(
            model=path,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_batched_tokens=max(max_batch_tokens, max_sequences),
            max_num_seqs=max_sequences,
            kv_cache_memory_bytes=kv_cache_bytes,
            enable_lora=True,
            max_loras=max_loras,
            max_lora_rank=max_rank,
            max_cpu_loras=max_cpu_loras,
            max_logprobs=_MOST_LOGPROBS,
            enable_sleep_mode=sleeps,
            **({} if memory is None else {"gpu_memory_utilization": memory}),
            # The groups of a step's rows are no part of a compiled graph; see ``cpu_lora``.
            enforce_eager=on_cpu,
            distributed_executor_backend=_IN_CORE if on_cpu else None,
            block_size=_CPU_BLOCK if on_cpu else None,
            # White space between JSON's parts would let a small model fill its whole answer with it.
            structured_outputs_config={"backend": "guidance", "disable_any_whitespace": True},
            disable_log_stats=True,
        )
        self.llm = AsyncLLM.from_engine_args(arguments, stat_loggers=[lambda *_: _Listener(self.figures)])

    @property
    def kv_blocks(self) -> int:
        return int(self.llm.vllm_config.cache_config.num_gpu_blocks or 0)

    def generate(
        self,
        request_id: str,
        tokens: Sequence[int],
        sampling: base.SamplingParams,
        *,
        max_tokens: int,
        stop_tokens: frozenset[int],
        adapter: AdapterSource | None,
        constraint: ConstraintSpec | None,
        echo: bool = False,
    ) -> AsyncGenerator[Any, None]:
        """vLLM's outputs, each with what is new. ``stop_tokens`` are all that end the answer. With ``echo`` the first
        ones have ``prompt_logprobs`` for each of the prompt's tokens."""
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            # vLLM takes -1 for none.
            seed=None if sampling.seed is None else sampling.seed & 0xFFFF_FFFF_FFFF_FFFF,
            stop=list(sampling.stop) or None,
            stop_token_ids=sorted(stop_tokens),
            # The tokens that end an answer are those of `stop_tokens`, on every engine.
            ignore_eos=constraint is None,
            min_tokens=min(sampling.min_tokens, max_tokens),
            logprobs=sampling.logprobs,
            prompt_logprobs=sampling.logprobs or 0 if echo else None,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=dict(sampling.logit_bias) or None,
            structured_outputs=None if constraint is None else _structured(constraint),
            output_kind=RequestOutputKind.DELTA,
        )
        return self._start(request_id, tokens, params, adapter)

    def score(
        self, request_id: str, tokens: Sequence[int], adapter: AdapterSource | None, *, reuse: bool
    ) -> AsyncGenerator[Any, None]:
        """One output, whose ``prompt_logprobs`` has the log-probability of each token given those before it.

        With ``reuse`` tokens that the cache has are not computed again: there are as many as the output's
        ``num_cached_tokens``, and what ``prompt_logprobs`` has for these is not filled in.
        """
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            skip_reading_prefix_cache=not reuse,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        return self._start(request_id, tokens, params, adapter)

    def _start(
        self, request_id: str, tokens: Sequence[int], params: SamplingParams, adapter: AdapterSource | None
    ) -> AsyncGenerator[Any, None]:
        lora = None if adapter is None else _lora(adapter)
        prompt = TokensPrompt(prompt_token_ids=list(tokens))
        stream: AsyncGenerator[Any, None] = self.llm.generate(prompt, params, request_id, lora_request=lora)
        return stream

    async def add_lora(self, source: AdapterSource) -> None:
        await self.llm.add_lora(_lora(source))

    async def remove_lora(self, engine_id: int) -> None:
        await self.llm.remove_lora(engine_id)

    async def sleep(self) -> None:
        """Weights, adapters among them, to host memory; the cache of keys and values is emptied."""
        await self.llm.sleep(level=1, mode="wait")

    async def wake(self) -> None:
        await self.llm.wake_up()

    async def check_health(self) -> None:
        """
        Raises:
            EngineDeadError: the process that computes has ended.
        """
        await self.llm.check_health()

    def close(self) -> None:
        self.llm.shutdown()


def _lora(source: AdapterSource) -> LoRARequest:
    # vLLM's caches of keys and values go by this name: the id, which is never used again, keeps a version apart from
    # one of the same name that was deleted.
    return LoRARequest(f"{source.ref}#{source.engine_id}", source.engine_id, source.path)


def _structured(constraint: ConstraintSpec) -> StructuredOutputsParams:
    if constraint.kind == "choices":
        return StructuredOutputsParams(choice=list(constraint.choices))
    if constraint.kind == "regex":
        return StructuredOutputsParams(regex=constraint.pattern)
    return StructuredOutputsParams(json=constraint.json_schema)
