"""The speed that a GPU's memory allows: decoding reads every weight once a step, whatever the batch."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from graft_server.base_model.structure import transformer_blocks

_COPIED = 4 << 30


def synchronize() -> None:
    """Wait until the GPU has done what it was given, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bytes_per_second() -> float:
    """Of the current CUDA device, as a copy within it moves them: read and written."""
    source = torch.empty(_COPIED, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    seconds: list[float] = []
    for _ in range(6):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return 2 * _COPIED / statistics.median(seconds[1:])


def bytes_per_step(model: Any, *, sequences: int, context: float, adapter_bytes: int = 0) -> float:
    """What one decode step must read: the weights (of the input embeddings only its own rows), the adapters in the
    batch, and the keys and values of its sequences, of ``context`` tokens each on average."""
    config = model.config.get_text_config()
    embeddings = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embeddings
    weights = sum(p.nbytes for p in model.parameters()) - (0 if tied else embeddings.nbytes)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = len(transformer_blocks(model)) * config.num_key_value_heads * head_dim * context
    return float(weights + adapter_bytes + sequences * 2 * keys * embeddings.element_size())
