"""The base model with a LoRA adapter taken into its weights, as a checkpoint that plain ``transformers`` loads."""

from __future__ import annotations

from pathlib import Path

from graft_plugins.method import AdapterFault
from graft_server.base_model import resolve
from graft_server.base_model.loading import load_model, load_tokenizer
from graft_server.training.methods.detect import CONFIG, detect_method

_PEFT_METHODS = ("lora", "rslora", "dora")


def save_merged(base_folder: Path, adapter: Path, target: Path) -> None:
    """Write configuration, weights and tokenizer into ``target``; the sums are taken in fp32 and stored as the base is.

    Raises:
        AdapterFault: the adapter is more than an update of the base's weights.
    """
    import json

    import torch
    from peft import PeftModel

    method = detect_method(json.loads((adapter / CONFIG).read_bytes()))
    if method not in _PEFT_METHODS:
        raise AdapterFault(f"a {method!r} adapter is more than an update of the base's weights and can't be taken in")
    base = resolve(str(base_folder), base_folder.parent)
    model = load_model(base, dtype="float32", device="cpu")
    stored = getattr(model.config, "torch_dtype", None) or torch.float32
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    dtype = _stored_dtype(base_folder) or stored
    merged.to(dtype).save_pretrained(target, safe_serialization=True)
    load_tokenizer(base).save_pretrained(target)


def _stored_dtype(folder: Path) -> object | None:
    """What the base's weights are stored in."""
    import torch
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dictionary
                dtype: torch.dtype = tensors.get_tensor(name).dtype
                return dtype
    return None
