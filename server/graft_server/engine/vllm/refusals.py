"""What vLLM can't serve, read from an adapter's configuration before vLLM ever sees it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHODS = ("lora", "rslora")
#: Ranks that vLLM can be started with.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
WAY_OUT = 'serve it with engine = "torch"'

_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_FEATURES = {
    "use_dora": "DoRA",
    "lora_bias": "a bias of LoRA's own",
    "modules_to_save": "modules_to_save",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "layer_replication",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "trainable_token_indices": "trainable tokens",
    "target_parameters": "target_parameters",
}


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why vLLM can't serve an adapter with this ``adapter_config.json``; ``None`` where it can."""
    wrong = next((name for field, name in _FEATURES.items() if config.get(field)), None)
    init = config.get("init_lora_weights", True)
    if wrong is None and config.get("bias", "none") != "none":
        wrong = f"bias={config['bias']!r}"
    if wrong is None and isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        wrong = f"init_lora_weights={init!r}, which changes the base model's weights"
    return None if wrong is None else f"the vllm engine can't serve {wrong}; {WAY_OUT}"


def largest_rank(config: Mapping[str, Any]) -> int:
    """The largest rank of any module, patterns included."""
    return max([int(config.get("r", 0)), *map(int, (config.get("rank_pattern") or {}).values())])


def started_rank(max_rank: int) -> int | None:
    """The least rank that vLLM can be started with to serve ``max_rank``; ``None`` where that is too large."""
    return next((rank for rank in RANKS if rank >= max_rank), None)
