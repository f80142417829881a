"""Which method an adapter folder is of, from its ``adapter_config.json``, and whether we can serve it at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graft_plugins.method import AdapterFault
from graft_server.training.methods.patterns import PatternError, check_patterns

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

#: PEFT options that change what is computed in ways that LoRA's two matrices do not tell.
_UNSUPPORTED = {
    "modules_to_save": "it replaces whole modules of the base model",
    "layer_replication": "it repeats layers of the base model",
    "alora_invocation_tokens": "activated LoRA switches on in the middle of a prompt",
    "trainable_token_indices": "it changes token embeddings",
    "target_parameters": "it targets parameters instead of linear modules",
    "use_qalora": "QALoRA pools its input",
    "megatron_config": "it splits modules over devices",
    "lora_bias": "its matrices have biases",
    "fan_in_fan_out": "its modules keep their weights transposed (Conv1D)",
    "use_bdlora": "its matrices are block-diagonal",
    "arrow_config": "Arrow mixes several adapters",
    "monteclora_config": "it samples its weights",
    "kasa_config": "it changes the base model's singular values",
}
#: Initialisations that leave the base weights alone; the others train relative to changed base weights.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal")


def detect_method(config: Mapping[str, Any]) -> str:
    """The name of the method that an adapter's configuration describes.

    Raises:
        AdapterFault: no method is named, or one that can't be served, or patterns that can't be matched, with the
            reason.
    """
    own = config.get("graft_method")
    if own is not None:
        if not isinstance(own, str):
            raise AdapterFault(f"{CONFIG}: graft_method must be a method's name, not {own!r}")
        return own
    kind = config.get("peft_type")
    if kind is None:
        raise AdapterFault(f"{CONFIG}: neither `peft_type` nor `graft_method` says how the adapter was built")
    if str(kind).upper() != "LORA":
        raise AdapterFault(f"{CONFIG}: peft_type {kind} is not supported; of PEFT's methods only LORA is")
    _refuse_variants(config)
    _refuse_patterns(config)
    if config.get("use_dora"):
        return "dora"
    return "rslora" if config.get("use_rslora") else "lora"


def _refuse_variants(config: Mapping[str, Any]) -> None:
    for name, reason in _UNSUPPORTED.items():
        if config.get(name):
            raise AdapterFault(f"{CONFIG}: {name} is not supported, because {reason}")
    if (bias := config.get("bias", "none")) != "none":
        raise AdapterFault(f"{CONFIG}: bias {bias!r} is not supported, because it changes the base model's biases")
    init = config.get("init_lora_weights", True)
    if not isinstance(init, bool) and init is not None and str(init).lower() not in _PLAIN_INITS:
        raise AdapterFault(
            f"{CONFIG}: init_lora_weights {init!r} is not supported, because it changes the base weights; save the "
            "adapter with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        )


def _refuse_patterns(config: Mapping[str, Any]) -> None:
    for field in ("rank_pattern", "alpha_pattern"):
        try:
            check_patterns(config.get(field) or {})
        except PatternError as error:
            raise AdapterFault(f"{CONFIG}: {field} {error}") from error
