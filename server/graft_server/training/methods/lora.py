"""The LoRA family, trained with PEFT and kept in PEFT's own file layout: lora, rslora and dora."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from graft_plugins.errors import nearest_name
from graft_plugins.method import AdapterFault, AdapterMethod, Graft
from graft_server.training.methods.anatomy import freeze
from graft_server.training.methods.checks import positive_int


def _split_names(value: Any) -> Any:
    """``q_proj,v_proj`` as a command line writes it."""
    if isinstance(value, str) and value != "all-linear":
        return [name.strip() for name in value.split(",") if name.strip()]
    return value


class LoraOptions(BaseModel):
    """Options of ``lora``, ``rslora`` and ``dora``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(16, ge=1, le=1024, description="Rank of the update.")
    alpha: float = Field(32.0, gt=0, description="The update is scaled by alpha / r (rslora: alpha / sqrt r).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in front of the update, while training.")
    target_modules: Annotated[str | list[str], BeforeValidator(_split_names)] = Field(
        "all-linear", description="Names of linear modules, e.g. q_proj,v_proj, or all-linear."
    )


class _PeftLora(AdapterMethod):
    """What the three have in common."""

    options_model = LoraOptions
    use_rslora: ClassVar[bool] = False
    use_dora: ClassVar[bool] = False

    def attach(self, model: Any, options: Any, *, seed: int) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model

        freeze(model)
        targets = options.target_modules
        _check_targets(model, targets)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=options.r,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            # The trainer keeps fp32 masters itself; PEFT's own upcast would cast every activation.
            attached = get_peft_model(model, config, autocast_adapter_dtype=False)
        for name, module in attached.named_modules():
            if hasattr(module, "lora_A") and not isinstance(module.get_base_layer(), torch.nn.Linear):
                kind = type(module.get_base_layer()).__name__
                raise AdapterFault(f"{name} is a {kind}; {self.name} needs linear modules (torch.nn.Linear)")
            if self.use_dora and hasattr(module, "lora_A"):
                # In bf16 the magnitudes would start up to 0.4 % beside the norms that serving divides by.
                weight = module.get_base_layer().weight.detach().float()
                magnitude = module.lora_magnitude_vector["default"].weight
                magnitude.data = torch.linalg.vector_norm(weight, dim=1)
        return attached

    def save(self, model: Any, folder: str) -> None:
        # Otherwise PEFT looks the base model's vocabulary up, on the hub if need be.
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)

    def load_state(self, model: Any, folder: str) -> None:
        from peft import set_peft_model_state_dict
        from peft.utils import load_peft_weights

        set_peft_model_state_dict(model, load_peft_weights(folder, device="cpu"))

    def compile(self, config: Mapping[str, Any], tensors: Mapping[str, Any], model: Any) -> Iterable[Graft]:
        from graft_server.training.methods.lora_files import compile_lora

        return compile_lora(config, tensors, model)

    def rank(self, config: Mapping[str, Any]) -> int:
        pattern = config.get("rank_pattern") or {}
        return max([positive_int(config, "r"), *(positive_int(pattern, key) for key in pattern)])


class Lora(_PeftLora):
    """Low-rank adaptation."""

    name: ClassVar[str] = "lora"
    description: ClassVar[str] = "Low-rank updates of linear layers (Hu et al. 2021)."


class RsLora(_PeftLora):
    """LoRA scaled by ``alpha / sqrt(r)``, which stays stable at high ranks."""

    name: ClassVar[str] = "rslora"
    description: ClassVar[str] = "LoRA with rank-stabilised scaling (Kalajdzievski 2023)."
    use_rslora: ClassVar[bool] = True


class Dora(_PeftLora):
    """LoRA on the direction of the weights, with a trained magnitude a row."""

    name: ClassVar[str] = "dora"
    description: ClassVar[str] = "LoRA with a separate magnitude for each output (Liu et al. 2024)."
    use_dora: ClassVar[bool] = True


def _check_targets(model: Any, targets: str | list[str]) -> None:
    """Raises ``AdapterFault`` unless every target names a linear module of the model."""
    from torch import nn

    if isinstance(targets, str):
        if any(type(module).__name__ == "Conv1D" for module in model.modules()):
            raise AdapterFault(
                f"{model.config.model_type} models keep their weights in Conv1D modules, which the LoRA methods do not "
                "support; use bottleneck or output-head"
            )
        return
    if not targets:
        raise AdapterFault("target_modules: name at least one module, or all-linear")
    paths = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(path == target or path.endswith(f".{target}") for path in paths):
            leaves = {path.rpartition(".")[2] for path in paths}
            near = nearest_name(target, leaves)
            hint = f"did you mean {near!r}?" if near else f"there are {', '.join(sorted(leaves))}"
            raise AdapterFault(f"target_modules: the base model has no linear module {target!r}; {hint}")
