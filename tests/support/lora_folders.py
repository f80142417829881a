"""LoRA folders as PEFT writes them, made without torch, and the ways in which they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

MODULE = "model.layers.0.self_attn.q_proj"


def write_lora(
    folder: Path,
    *,
    rank: int = 4,
    width: int = 64,
    module: str = MODULE,
    seed: int = 0,
    value: float | None = None,
    lineage: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A LoRA of one square linear module with ``width`` inputs and outputs. ``value`` is put into one of its weights,
    ``config`` over its configuration, and ``lineage`` becomes its ``graft.json``."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    down = random.normal(size=(rank, width)).astype(np.float32)
    up = random.normal(size=(width, rank)).astype(np.float32)
    if value is not None:
        up[0, 0] = value
    prefix = f"base_model.model.{module}"
    save_file({f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}, folder / "adapter_model.safetensors")
    document = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": [module.rpartition(".")[2]],
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(document), encoding="utf-8")
    if lineage is not None:
        (folder / "graft.json").write_text(json.dumps(lineage), encoding="utf-8")
    return folder
