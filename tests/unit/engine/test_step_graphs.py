"""A recorded step is given up when what it was recorded of changes, and is right for any rows and contexts."""

from __future__ import annotations

from typing import Any

import pytest

from graft_server.engine.base import GenerateRequest, PromptInput, SamplingParams
from support.adapters import methods
from support.plain_models import PlainModels
from support.recorder import Recorder, drain

pytestmark = pytest.mark.torch

#: All of one rank bucket. Each of the first changes what the stack of that bucket computes, or moves it; the last can't
#: be recorded.
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"r": 16, "target_modules": "q_proj"}),
    ("lora", {"r": 12}),
    ("dora", {"r": 16}),
    *[("lora", {"r": 16})] * 3,
    ("bottleneck", {"r": 16}),
]
BOTTLENECK = len(KINDS)
NEW_TOKENS = 24
#: A step of a shape is recorded when it comes for this time.
OFTEN = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> PlainModels:
    return PlainModels(tmp_path_factory.mktemp("models"), KINDS)


class Replaying:
    """A torch engine whose steps are recorded and replayed."""

    def __init__(self, models: PlainModels, device: str = "cpu") -> None:
        from graft_server.engine.messages import EngineConfig
        from graft_server.engine.torch.engine import TorchEngine
        from support.recorded_operations import replay_operations

        self._models = models
        self._events = Recorder()
        config = EngineConfig("torch", str(models.base.path), "", device=device, dtype="float32", kv_cache_mib=16)
        self._engine = TorchEngine(models.base, config, methods(), self._events)
        if device == "cpu":
            replay_operations(self._engine.runner)
        self._asked = 0

    @property
    def replays(self) -> int:
        return self._engine.runner.graphs.replays

    def check(self, asked: list[tuple[int, str, int]]) -> None:
        """Ask adapters prompts at once; each answer of so many tokens is the plain model's."""
        names = {}
        for adapter, prompt, tokens in asked:
            names[str(self._asked)] = (adapter, prompt, tokens)
            sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
            source = self._models.adapters[adapter]
            self._engine.submit(GenerateRequest(str(self._asked), PromptInput(text=prompt), sampling, source))
            self._asked += 1
        drain(self._engine)
        assert not self._events.errors
        for name, (adapter, prompt, tokens) in names.items():
            assert self._events.text(name) == self._models.answer(adapter, prompt, tokens), f"adapter {adapter}"


def test_newcomers_change_what_is_replayed(models: PlainModels) -> None:
    replaying = Replaying(models)
    before = 0
    for adapter in range(BOTTLENECK):
        replaying.check([(adapter, "Turn off the lights", NEW_TOKENS)])
        assert replaying.replays > before
        before = replaying.replays
    replaying.check([(adapter, "Turn off the lights", NEW_TOKENS) for adapter in range(BOTTLENECK)])
    assert replaying.replays > before


def test_rows_that_leave_become_padding_and_contexts_outgrow_a_recording(models: PlainModels) -> None:
    replaying = Replaying(models)
    replaying.check([(i % 3, f"Number {i} is", 8 * (i + 1)) for i in range(7)])
    assert replaying.replays > 20
    # 130 tokens are more than the shortest context of a recording has room for.
    replaying.check([(1, "Turn off the lights", 140)])


def test_prompts_are_replayed_too(models: PlainModels) -> None:
    replaying = Replaying(models)
    for i in range(8):
        replaying.check([(0, f"Number {i} is", 1), (0, f"Number {i} was not", 1)])
    assert replaying.replays == 8 - OFTEN


def test_a_batch_with_a_bottleneck_is_computed_as_usual(models: PlainModels) -> None:
    replaying = Replaying(models)
    replaying.check([(BOTTLENECK, "Turn off the lights", NEW_TOKENS), (1, "Turn off the lights", NEW_TOKENS)])
    assert replaying.replays == 0


def test_cuda_graphs_and_triton_kernels(models: PlainModels) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    replaying = Replaying(models, device="cuda")
    replaying.check([(adapter, "Turn off the lights", NEW_TOKENS) for adapter in range(BOTTLENECK)])
    assert replaying.replays > 0
