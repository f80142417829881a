"""What the engine must answer in a soak, computed by plain models one prompt at a time."""

from __future__ import annotations

from pathlib import Path

import torch

from graft_server.engine.base import AdapterSource
from support.plain_models import PlainModels

#: A token is a byte, so this is several blocks of the KV cache.
SHARED = "The rules of the house are long, and everyone reads them from the beginning. "
PROMPTS = ["Hello", "What is a beam?", f"{SHARED}One.", f"{SHARED}Two, and then some.", "x" * 200]
CANDIDATES = ("a", "beam", "the lights")
TOKENS = 10


class Reference(PlainModels):
    """An adapter of every method, and the right answers. Adapter 0 is the base model."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        #: One whose files are not there.
        self.broken = AdapterSource("broken@1", 99, str(folder / "nowhere"), "lora", 4)
        cases = [(adapter, prompt) for adapter in range(len(self.models)) for prompt in range(len(PROMPTS))]
        self.answers = {(a, p): self.answer(a, PROMPTS[p], TOKENS) for a, p in cases}
        self.scores = {(a, p): [self.score(a, PROMPTS[p], one) for one in CANDIDATES] for a, p in cases}
        self.vectors = [self._vector(prompt) for prompt in PROMPTS]

    @property
    def sources(self) -> list[AdapterSource]:
        """The adapters without the base model."""
        return [source for source in self.adapters if source is not None]

    def _vector(self, prompt: str) -> list[float]:
        with torch.inference_mode():
            hidden = self.models[0].get_decoder()(input_ids=torch.tensor([self.tokens(prompt)])).last_hidden_state[0]
        return list(torch.nn.functional.normalize(hidden.mean(0), dim=0).tolist())
