"""What the engine must answer in a soak, computed by plain models one prompt at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from graft_server.base_model import BaseModel, resolve
from graft_server.base_model.loading import load_model, load_tokenizer
from graft_server.base_model.prompt import encode_target
from graft_server.engine.base import AdapterSource
from support.adapters import greedy, random_adapter
from support.tiny_model import save_tiny_model

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"r": 4}),
    ("lora", {"r": 16, "target_modules": "q_proj,v_proj"}),
    ("rslora", {"r": 8}),
    ("dora", {"r": 4}),
    ("bottleneck", {"r": 8}),
    ("output-head", {"r": 16}),
]
#: A token is a byte, so this is several blocks of the KV cache.
SHARED = "The rules of the house are long, and everyone reads them from the beginning. "
PROMPTS = ["Hello", "What is a beam?", f"{SHARED}One.", f"{SHARED}Two, and then some.", "x" * 200]
CANDIDATES = ("a", "beam", "the lights")
TOKENS = 10


class Reference:
    """A tiny model with an adapter of every method, and the right answers. Adapter 0 is the base model."""

    def __init__(self, folder: Path) -> None:
        self.base: BaseModel = resolve(str(save_tiny_model(folder / "model")), folder / "cache")
        self.adapters: list[AdapterSource | None] = [None]
        models: list[Any] = [load_model(self.base, dtype="float32", device="cpu")]
        for i, (method, options) in enumerate(KINDS, start=1):
            source, model = random_adapter(self.base, method, folder / f"a{i}", seed=i, engine_id=i, **options)
            self.adapters.append(source)
            models.append(model)
        #: One whose files are not there.
        self.broken = AdapterSource("broken@1", 99, str(folder / "nowhere"), "lora", 4)
        self._tokenizer = load_tokenizer(self.base)
        cases = [(adapter, prompt) for adapter in range(len(models)) for prompt in range(len(PROMPTS))]
        self.answers = {case: self._answer(models[case[0]], case[1]) for case in cases}
        self.scores = {case: [self._score(models[case[0]], case[1], one) for one in CANDIDATES] for case in cases}
        self.vectors = [self._vector(models[0], prompt) for prompt in range(len(PROMPTS))]

    @property
    def sources(self) -> list[AdapterSource]:
        """The adapters without the base model."""
        return [source for source in self.adapters if source is not None]

    def _tokens(self, prompt: int) -> list[int]:
        return list(self._tokenizer(PROMPTS[prompt])["input_ids"])

    def _answer(self, model: Any, prompt: int) -> str:
        return str(self._tokenizer.decode(greedy(model, self._tokens(prompt), TOKENS), skip_special_tokens=True))

    def _score(self, model: Any, prompt: int, candidate: str) -> float:
        before, ids = self._tokens(prompt), encode_target(self._tokenizer, candidate)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([before + ids]), use_cache=False).logits[0]
        logprobs = torch.log_softmax(logits, -1)[len(before) - 1 : -1]
        return float(logprobs.gather(-1, torch.tensor(ids)[:, None]).sum())

    def _vector(self, model: Any, prompt: int) -> list[float]:
        with torch.inference_mode():
            hidden = model.get_decoder()(input_ids=torch.tensor([self._tokens(prompt)])).last_hidden_state[0]
        return list(torch.nn.functional.normalize(hidden.mean(0), dim=0).tolist())
