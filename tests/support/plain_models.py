"""A tiny model alone and with each of some adapters, asked one prompt at a time: what an engine's answers must be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graft_server.base_model import BaseModel, resolve
from graft_server.base_model.loading import load_model, load_tokenizer
from graft_server.base_model.prompt import encode_target
from graft_server.engine.base import AdapterSource
from support.adapters import greedy, random_adapter
from support.tiny_model import save_tiny_model

#: An adapter of every method, and two of one in different rank buckets.
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("lora", {"r": 4}),
    ("lora", {"r": 16, "target_modules": "q_proj,v_proj"}),
    ("rslora", {"r": 8}),
    ("dora", {"r": 4}),
    ("bottleneck", {"r": 8}),
    ("output-head", {"r": 16}),
)


class PlainModels:
    """Adapter 0 is the base model; the others are of ``kinds``, with their numbers as engine ids. In fp32."""

    def __init__(self, folder: Path, kinds: Sequence[tuple[str, dict[str, Any]]] = KINDS) -> None:
        save_tiny_model(folder / "model")
        self.base: BaseModel = resolve(str(folder / "model"), folder / "cache")
        self.tokenizer = load_tokenizer(self.base)
        self.adapters: list[AdapterSource | None] = [None]
        self.models: list[Any] = [load_model(self.base, dtype="float32", device="cpu")]
        for i, (method, options) in enumerate(kinds, start=1):
            source, model = random_adapter(self.base, method, folder / f"a{i}", seed=i, engine_id=i, **options)
            self.adapters.append(source)
            self.models.append(model)

    def tokens(self, prompt: str) -> list[int]:
        return list(self.tokenizer(prompt)["input_ids"])

    def answer(self, adapter: int, prompt: str, new_tokens: int) -> str:
        """The likeliest one."""
        ids = greedy(self.models[adapter], self.tokens(prompt), new_tokens)
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def likelihoods(self, adapter: int, tokens: Sequence[int]) -> Any:
        """The log-probabilities of all tokens behind each of these but the last, ``[N - 1, vocabulary]``."""
        import torch

        with torch.inference_mode():
            logits = self.models[adapter](input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
        return torch.log_softmax(logits.float(), -1)[:-1]

    def score(self, adapter: int, prompt: str, candidate: str, ending: str | None = None) -> float:
        """The log-probability of a candidate behind a prompt, both in one sequence."""
        import torch

        before, ids = self.tokens(prompt), encode_target(self.tokenizer, candidate, ending=ending)
        logprobs = self.likelihoods(adapter, before + ids)[len(before) - 1 :]
        return float(logprobs.gather(-1, torch.tensor(ids)[:, None]).sum())
