"""The base model with a LoRA adapter taken into its weights, as a checkpoint that plain ``transformers`` loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft_plugins.method import AdapterFault, LinearGraft
from graft_server.base_model import resolve
from graft_server.base_model.loading import load_model, load_tokenizer
from graft_server.training.methods.detect import CONFIG, WEIGHTS, detect_method

if TYPE_CHECKING:
    import torch

_PEFT_METHODS = ("lora", "rslora", "dora")


def save_merged(base_folder: Path, adapter: Path, target: Path) -> None:
    """Write configuration, weights and tokenizer into ``target``; the sums are taken in fp32 and stored as the base is.

    Raises:
        AdapterFault: the adapter is more than an update of the base's weights, or can't be served.
    """
    import torch
    from safetensors.torch import load_file

    from graft_server.training.methods.lora_files import compile_lora

    config = json.loads((adapter / CONFIG).read_bytes())
    method = detect_method(config)
    if method not in _PEFT_METHODS:
        raise AdapterFault(f"a {method!r} adapter is more than an update of the base's weights and can't be taken in")
    base = resolve(str(base_folder), base_folder.parent)
    model = load_model(base, dtype="float32", device="cpu")
    stored = getattr(model.config, "torch_dtype", None) or torch.float32
    # What the engine serves, and not what PEFT reads of the same files.
    for graft in compile_lora(config, load_file(adapter / WEIGHTS), model):
        _take_in(model, graft)
    dtype = _stored_dtype(base_folder) or stored
    model.to(dtype).save_pretrained(target, safe_serialization=True)
    load_tokenizer(base).save_pretrained(target)


def _take_in(model: Any, graft: LinearGraft) -> None:
    module = model.get_submodule(graft.module)
    # A parameter of its own: embeddings that shared the output layer's weights keep theirs.
    module.weight = _updated(module.weight.detach(), graft)
    if module is model.get_output_embeddings():
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def _updated(weight: torch.Tensor, graft: LinearGraft) -> torch.nn.Parameter:
    """``output_scale (W + scaling B A)``, ``[out_features, in_features]``."""
    import torch

    updated = weight + graft.scaling * (graft.b.float() @ graft.a.float())
    if graft.output_scale is not None:
        updated *= graft.output_scale[:, None]
    return torch.nn.Parameter(updated, requires_grad=False)


def _stored_dtype(folder: Path) -> object | None:
    """What the base's weights are stored in."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dictionary
                dtype: torch.dtype = tensors.get_tensor(name).dtype
                return dtype
    return None
