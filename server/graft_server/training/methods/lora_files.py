"""PEFT's LoRA files as primitive operations: what each tensor belongs to, its rank, its scaling."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from graft_plugins.errors import nearest_name
from graft_plugins.method import AdapterFault, LinearGraft
from graft_server.training.methods.checks import check_tensor, positive_int
from graft_server.training.methods.detect import CONFIG, WEIGHTS, detect_method
from graft_server.training.methods.patterns import ModulePatterns

_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?:(?P<matrix>lora_[AB])\.weight|(?P<magnitude>lora_magnitude_vector)(?:\.weight)?)"
)


def compile_lora(config: Mapping[str, Any], tensors: Mapping[str, Any], model: Any) -> Iterator[LinearGraft]:
    """One ``LinearGraft`` a module that the adapter updates.

    Raises:
        AdapterFault: see ``AdapterMethod.compile``.
    """
    method = detect_method(config)
    modules = dict(model.named_modules())
    parts = _by_module(tensors, modules)
    if not parts:
        raise AdapterFault(f"{WEIGHTS}: no module of the base model is matched")
    ranks = ModulePatterns(config.get("rank_pattern") or {})
    alphas = ModulePatterns(config.get("alpha_pattern") or {})
    wanted = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if method == "dora" else set())
    for name, found in parts.items():
        for part in sorted(wanted - found.keys()):
            raise AdapterFault(f"{WEIGHTS}: {name} has no {part}")
        for part in sorted(found.keys() - wanted):
            raise AdapterFault(f"{WEIGHTS}: {name} has a {part}, which {method} does not have")
        rank_key, alpha_key = ranks.key(name), alphas.key(name)
        rank = positive_int(config, "r") if rank_key is None else positive_int(config["rank_pattern"], rank_key)
        alpha = config.get("lora_alpha", 8) if alpha_key is None else config["alpha_pattern"][alpha_key]
        yield _graft(name, modules[name], found, rank, _scaling(config, rank, alpha))


def _by_module(tensors: Mapping[str, Any], modules: Mapping[str, Any]) -> dict[str, dict[str, tuple[str, Any]]]:
    """Module -> part -> (tensor's name, tensor)."""
    parts: dict[str, dict[str, tuple[str, Any]]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise AdapterFault(f"{WEIGHTS}: {name} is no LoRA matrix of a linear module")
        module = match["module"]
        if module not in modules:
            near = nearest_name(module, modules)
            hint = f"; the nearest one is {near}" if near else ""
            raise AdapterFault(f"{WEIGHTS}: the base model has no module {module}{hint}")
        if not isinstance(modules[module], nn.Linear):
            kind = type(modules[module]).__name__
            raise AdapterFault(f"{WEIGHTS}: {module} is a {kind} in the base model, not a linear module")
        parts.setdefault(module, {})[match["matrix"] or match["magnitude"]] = (name, tensor)
    return parts


def _scaling(config: Mapping[str, Any], rank: int, alpha: Any) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterFault(f"{CONFIG}: lora_alpha must be a number, not {alpha!r}")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _graft(
    name: str, module: nn.Linear, found: Mapping[str, tuple[str, Any]], rank: int, scaling: float
) -> LinearGraft:
    a = check_tensor(*found["lora_A"], [rank, module.in_features])
    b = check_tensor(*found["lora_B"], [module.out_features, rank])
    output_scale = None
    if "lora_magnitude_vector" in found:
        magnitude = check_tensor(*found["lora_magnitude_vector"], [module.out_features])
        output_scale = _dora_scale(name, module, a, b, scaling, magnitude)
    return LinearGraft(module=name, a=a, b=b, scaling=scaling, output_scale=output_scale)


def _dora_scale(name: str, module: nn.Linear, a: Any, b: Any, scaling: float, magnitude: Any) -> Any:
    """``m / ||W + scaling B A||`` for each output row, ``[out_features]`` (Liu et al. 2024, eq. 5)."""
    if module.weight.is_meta:
        raise AdapterFault(f"{name}: DoRA needs the base model's weights to be compiled, not only its shapes")
    weight = module.weight.detach().float()
    update = b.to(weight.device).float() @ a.to(weight.device).float()
    norm = torch.linalg.vector_norm(weight + scaling * update, dim=1)
    if not bool((norm > 0).all()):
        raise AdapterFault(f"{WEIGHTS}: {name} has an output whose updated weights are all zero")
    return magnitude.to(weight.device).float() / norm
