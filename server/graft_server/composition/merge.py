"""Several LoRA adapters as one, with PEFT's own arithmetic on the matrices, file to file, without the base model.

- ``cat`` (exact): the matrices side by side, so that the update is ``sum_i w_i s_i B_i A_i``; the ranks add up
- ``linear``: ``A = sum_i sqrt(w_i s_i) A_i``, and ``B`` alike; its products also mix each ``B_i`` with others' ``A_j``
- ``ties`` (Yadav et al., "TIES-Merging", 2023): the largest values of each, those of the majority's sign, summed
- ``dare`` (Yu et al., "Language Models are Super Mario", 2023): values dropped by chance, the others scaled up, summed

``s_i`` is an adapter's scaling. All but ``cat`` need equal ranks, as PEFT's ``add_weighted_adapter`` does.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.merge_utils import dare_linear, task_arithmetic, ties
from safetensors.torch import load_file, save_file

from graft_plugins.method import AdapterFault
from graft_server.training.methods.detect import CONFIG, WEIGHTS, detect_method
from graft_server.training.methods.patterns import ModulePatterns

STATE = "task_state.json"
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")


@dataclass(frozen=True)
class _Lora:
    """One adapter's matrices by module: ``A`` is ``[rank, in]``, ``B`` is ``[out, rank]``."""

    config: dict[str, Any]
    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]
    alphas: ModulePatterns

    def scaling(self, module: str) -> float:
        rank = self.modules[module][0].shape[0]
        key = self.alphas.key(module)
        alpha = self.config.get("lora_alpha", 8) if key is None else self.config["alpha_pattern"][key]
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def merge(
    folders: Sequence[Path], weights: Sequence[float], target: Path, *, method: str, density: float, seed: int
) -> int:
    """Write the merged adapter into ``target`` and return its largest rank.

    Raises:
        AdapterFault: an adapter is no LoRA, or they differ in modules, shapes or (but for ``cat``) ranks.
    """
    adapters = [_read(folder) for folder in folders]
    first = adapters[0]
    for number, other in enumerate(adapters[1:], 2):
        if differing := sorted(first.modules.keys() ^ other.modules.keys()):
            raise AdapterFault(f"the first adapter and number {number} update different modules: {differing[0]}")
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        merged = {
            module: _merged(module, adapters, weights, method=method, density=density)
            for module in sorted(first.modules)
        }
    finally:
        torch.random.set_rng_state(generator_state)
    ranks = {module: a.shape[0] for module, (a, _) in merged.items()}
    top = max(ranks.values())
    tensors = {}
    for module, (a, b) in merged.items():
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = a.contiguous()
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = b.contiguous()
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    # The scalings are in the matrices now.
    odd = {re.escape(module): rank for module, rank in ranks.items() if rank != top}
    config = {**first.config, "r": top, "lora_alpha": top, "use_rslora": False, "rank_pattern": odd}
    (target / CONFIG).write_text(json.dumps({**config, "alpha_pattern": odd}, indent=2), encoding="utf-8")
    if (folders[0] / STATE).exists():
        shutil.copyfile(folders[0] / STATE, target / STATE)
    return top


def _merged(
    module: str, adapters: Sequence[_Lora], weights: Sequence[float], *, method: str, density: float
) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [adapter.modules[module] for adapter in adapters]
    shares = [weight * adapter.scaling(module) for weight, adapter in zip(weights, adapters, strict=True)]
    outer = {(a.shape[1], b.shape[0]) for a, b in pairs}
    if len(outer) > 1:
        raise AdapterFault(f"{module} has different shapes in the adapters; they are for different base models")
    if method == "cat":
        scaled = [share * a for share, (a, _) in zip(shares, pairs, strict=True)]
        return torch.cat(scaled), torch.cat([b for _, b in pairs], dim=1)
    ranks = [a.shape[0] for a, _ in pairs]
    if len(set(ranks)) > 1:
        told = " and ".join(map(str, ranks))
        raise AdapterFault(f"{module} has ranks {told}; method {method!r} needs equal ones, `cat` does not")
    roots = torch.tensor([math.sqrt(share) for share in shares])

    def combine(matrices: list[torch.Tensor]) -> torch.Tensor:
        match method:
            case "ties":
                return ties(matrices, roots, density)  # type: ignore[no-any-return]
            case "dare":
                return dare_linear(matrices, roots, density)  # type: ignore[no-any-return]
            case _:
                return task_arithmetic(matrices, roots)  # type: ignore[no-any-return]

    return combine([a for a, _ in pairs]), combine([b for _, b in pairs])


def _read(folder: Path) -> _Lora:
    config = json.loads((folder / CONFIG).read_bytes())
    method = detect_method(config)
    if method not in ("lora", "rslora"):
        raise AdapterFault(f"a {method!r} adapter can't be merged, only LoRA adapters can")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise AdapterFault(f"{WEIGHTS}: {name} is no LoRA matrix")
        parts.setdefault(match["module"], {})[match["matrix"]] = tensor.float()
    for module, found in parts.items():
        if found.keys() != {"A", "B"}:
            raise AdapterFault(f"{WEIGHTS}: {module} lacks one of its two matrices")
    modules = {module: (found["A"], found["B"]) for module, found in parts.items()}
    return _Lora(config, modules, ModulePatterns(config.get("alpha_pattern") or {}))
