"""Families of models that run on the torch engine's steps, and one that can't and is refused."""

from __future__ import annotations

from typing import Any

import pytest

from graft_server.engine.base import EngineUnavailableError
from graft_server.engine.torch.sequence import BASE, Chunk, Sequence
from support.families import SIZES
from support.no_compiler import no_compiler

pytestmark = pytest.mark.torch


def build(family: str, **options: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **options)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 8}),
        ("qwen3", {"head_dim": 12}),
        ("olmo2", {}),
        ("gemma3_text", {"head_dim": 16, "sliding_window": 8}),
    ],
)
def test_sequences_of_different_lengths_decode_as_alone(family: str, options: dict[str, Any], compiled: bool) -> None:
    import torch

    from graft_server.engine.torch.runner import ModelRunner

    model = build(family, **options)
    prompts = [[(7 * i + 5 * j) % 101 for j in range(length)] for i, length in enumerate((3, 40, 17))]
    with torch.inference_mode():
        expected = [model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1] for prompt in prompts]
    if compiled:
        runner = ModelRunner(model, kv_cache_bytes=1 << 20)
    else:
        with no_compiler():
            runner = ModelRunner(model, kv_cache_bytes=1 << 20)
    sequences = [
        Sequence(str(i), BASE, prompt, blocks=list(range(4 * i, 4 * i + 4))) for i, prompt in enumerate(prompts)
    ]
    # The last three tokens of each one by one, all sequences together.
    runner.forward([Chunk(sequence, 0, len(sequence.tokens) - 3) for sequence in sequences if len(sequence.tokens) > 3])
    for left in (3, 2, 1):
        wanted, logits = runner.forward([Chunk(sequence, len(sequence.tokens) - left, 1) for sequence in sequences])
    for (chunk, _), row in zip(wanted, logits, strict=True):
        torch.testing.assert_close(row, expected[int(chunk.sequence.id)], rtol=1e-4, atol=1e-4)


def test_a_model_that_keeps_more_than_keys_and_values_is_refused() -> None:
    from graft_server.engine.torch.runner import ModelRunner

    sizes = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
    model = build("falcon_h1", initializer_range=1.0, **sizes)
    with pytest.raises(EngineUnavailableError, match=r"falcon_h1 models can't run on paged attention: .*logits differ"):
        ModelRunner(model, kv_cache_bytes=1 << 20)
