"""Adapters of other families than Llama: whatever their modules read, each row equals PEFT's, and no row is changed by
what is beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from graft_server.engine.torch.sequence import BASE, Chunk, Sequence
from support.adapters import methods, random_adapter
from support.families import SIZES
from support.tiny_model import save_tiny_model

pytestmark = pytest.mark.torch

EXPERTS = {
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
}
PROMPT = [(5 * i + 11) % 310 + 3 for i in range(20)]


class Family:
    """A tiny model with random weights, biases included, and its runner."""

    def __init__(self, folder: Path, name: str, options: dict[str, Any], dtype: str = "float32") -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from graft_server.base_model import resolve
        from graft_server.base_model.loading import load_model
        from graft_server.engine.torch.runner import ModelRunner

        random = torch.Generator().manual_seed(1)
        config = AutoConfig.for_model(name, **SIZES, **options, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=random)
                parameter.copy_(parameter + 0.1 * noise if parameter.ndim == 1 else 0.15 * noise)
        # Its tokenizer is another one's.
        shutil.copytree(save_tiny_model(folder / "tiny"), folder / "model")
        for file in (folder / "model").glob("*.safetensors"):
            file.unlink()
        model.save_pretrained(folder / "model")
        self.base = resolve(str(folder / "model"), folder / "cache")
        self.plain = [load_model(self.base, dtype="float32", device="cpu")]
        self.runner = ModelRunner(load_model(self.base, dtype=dtype, device="cpu"), kv_cache_bytes=8 << 20)
        self._folder = folder

    def add(self, method: str, **options: Any) -> int:
        """A random adapter, for the steps from now on."""
        from graft_server.engine.adapter_files import read_grafts
        from graft_server.engine.torch.resident import make_resident

        number, runner = len(self.plain), self.runner
        folder = self._folder / str(number)
        source, plain = random_adapter(self.base, method, folder, seed=number, engine_id=number, **options)
        self.plain.append(plain)
        reading = make_resident(read_grafts(source, methods(), runner.model, max_rank=64), dtype=runner.dtype)
        while True:
            try:
                next(reading)
            except StopIteration as end:
                runner.mixer.add(number, end.value)
                return number

    def logits(self, adapters: list[int]) -> list[Any]:
        """Behind the prompt with each of these adapters: all but its last token in one step, and then that one."""
        sequences = [Sequence(str(i), adapter, PROMPT, blocks=[2 * i, 2 * i + 1]) for i, adapter in enumerate(adapters)]
        self.runner.forward([Chunk(sequence, 0, len(PROMPT) - 1) for sequence in sequences])
        wanted, logits = self.runner.forward([Chunk(sequence, len(PROMPT) - 1, 1) for sequence in sequences])
        rows = {int(chunk.sequence.id): row.clone() for (chunk, _), row in zip(wanted, logits, strict=True)}
        return [rows[i] for i in range(len(adapters))]

    def check(self, adapters: list[int]) -> None:
        import torch

        for adapter, row in zip(adapters, self.logits(adapters), strict=True):
            with torch.inference_mode():
                expected = self.plain[adapter](input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "some"),
    [
        ("qwen2", {}, "k_proj,up_proj"),
        ("phi", {}, "q_proj,v_proj"),
        ("cohere", {}, "v_proj,gate_proj"),
        # Their rows come to some modules as [T, width], not [1, T, width].
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, "fc1,fc2"),
        ("qwen2_moe", EXPERTS, "up_proj,shared_expert_gate"),
    ],
)
def test_every_row_is_as_with_its_adapter_alone(name: str, options: dict[str, Any], some: str, tmp_path: Path) -> None:
    family = Family(tmp_path, name, options)
    family.check([BASE])
    part = family.add("lora", r=4, target_modules=some)
    family.check([part, BASE, part])
    whole, scaled = family.add("lora", r=4), family.add("dora", r=4, target_modules=some)
    family.check([whole, part, BASE, scaled, whole])
    family.runner.mixer.remove(scaled)
    family.check([part, whole, BASE])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_scale_beside_them_changes_no_bit_of_others(dtype: str, tmp_path: Path) -> None:
    import torch

    family = Family(tmp_path, "qwen2", {}, dtype)
    others = [BASE, family.add("lora", r=4, target_modules="q_proj,v_proj"), family.add("lora", r=4)]
    before = family.logits(others)
    scaled = family.add("dora", r=4, target_modules="k_proj")
    beside = family.logits([*others, scaled])
    for one, other in zip(before, beside, strict=False):
        assert torch.equal(one, other)
