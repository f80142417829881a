"""LoRA adapters with random weights, in PEFT's layout: what they answer is nonsense, what they cost is not.

Only the base model's shapes are needed. They come from its modules on torch's ``meta`` device, so that no weight is
loaded.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from graft_server.base_model import BaseModel, BaseModelError, resolve
from graft_server.base_model.loading import load_meta_model
from graft_server.config import load_settings
from graft_server.training.methods.detect import CONFIG, WEIGHTS

#: Of the size that training leaves behind: small beside the base model's weights, and not zero.
_DEVIATION = 0.01


def locate(spec: str) -> BaseModel:
    """The base model that ``spec`` names, as ``graft serve`` would find it: in the same cache folder.

    Raises:
        UsageError: the settings can't be read.
        BaseModelError: there is none.
    """
    return resolve(spec, load_settings(None, {"base_model": spec}).cache_dir)


class RandomLora:
    """Makes adapters of one rank over all linear modules but the output layer, as PEFT's ``all-linear`` means them.

    Raises:
        BaseModelError: the model has no such module.
    """

    def __init__(self, base: BaseModel, *, rank: int) -> None:
        model = load_meta_model(base)
        head = model.get_output_embeddings()
        self._base = base
        self._rank = rank
        self._shapes = {
            name: (module.in_features, module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
        if not self._shapes:
            raise BaseModelError(f"{base.name} ({base.architecture}) has no linear modules for LoRA")

    def write(self, folder: Path, *, seed: int) -> None:
        """Writes an adapter to ``folder``, which is made. The same seed gives the same weights, in bfloat16."""
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, (inputs, outputs) in self._shapes.items():
            for matrix, shape in (("lora_A", (self._rank, inputs)), ("lora_B", (outputs, self._rank))):
                values = torch.randn(shape, generator=generator) * _DEVIATION
                tensors[f"base_model.model.{name}.{matrix}.weight"] = values.bfloat16()
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self._base.name,
            "inference_mode": True,
            "r": self._rank,
            "lora_alpha": self._rank,
            "target_modules": sorted({name.rpartition(".")[2] for name in self._shapes}),
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
