"""vLLM's sleep mode: asked for as it is documented, and refused where this build of vLLM has none."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` installs it")

from graft_server.engine.base import EngineUnavailableError
from graft_server.engine.messages import EngineConfig
from graft_server.engine.vllm.engine import VllmEngine
from graft_server.engine.vllm.runtime import Runtime, platform

pytestmark = [pytest.mark.vllm, pytest.mark.torch]


class RecordedLLM:
    """Where ``AsyncLLM`` would be."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def sleep(self, **options: Any) -> None:
        self.asked.append(("sleep", options))

    async def wake_up(self) -> None:
        self.asked.append(("wake_up", {}))


async def test_weights_go_to_host_memory_once_nothing_is_in_progress() -> None:
    runtime = Runtime.__new__(Runtime)
    runtime.llm = llm = RecordedLLM()
    await runtime.sleep()
    await runtime.wake()
    assert llm.asked == [("sleep", {"level": 1, "mode": "wait"}), ("wake_up", {})]


@pytest.mark.skipif(platform() == "cuda", reason="it can sleep there")
def test_without_cuda_it_is_refused_before_a_model_is_loaded() -> None:
    config = EngineConfig(engine="vllm", base_model="tiny", cache_dir="", sleeps=True)
    with pytest.raises(
        EngineUnavailableError, match="can't sleep on cpu, only on cuda; leave out sleep_while_training"
    ):
        VllmEngine(None, config, {}, None)  # type: ignore[arg-type]
