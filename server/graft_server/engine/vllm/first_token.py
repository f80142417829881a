"""One token of the base model at start: vLLM loads models that it then can't step, and such a step ends its process."""

from __future__ import annotations

from graft_server.engine.base import EngineUnavailableError, SamplingParams
from graft_server.engine.vllm.refusals import WAY_OUT
from graft_server.engine.vllm.runtime import REFUSALS, EngineDeadError, EngineGenerateError, Runtime


async def check_first_token(runtime: Runtime, base_model: str) -> None:
    """
    Raises:
        EngineUnavailableError: vLLM can't compute with the model; attention heads too small for its kernels, say.
    """
    sampling = SamplingParams(max_tokens=1, ignore_eos=True)
    stream = runtime.generate(
        "first-token", [0], sampling, max_tokens=1, stop_tokens=frozenset(), adapter=None, constraint=None
    )
    try:
        async for _ in stream:
            pass
    except (EngineDeadError, EngineGenerateError, *REFUSALS) as error:
        raise EngineUnavailableError(
            f"vLLM loaded {base_model} but failed at its first token, for the reason logged above; {WAY_OUT}"
        ) from error
