"""Adapter files that can't be served are refused with one sentence that names the file and the fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graft_plugins.manager import PluginHost
from graft_plugins.method import AdapterFault
from graft_server.training.methods import detect_method
from support.adapter_files import read_adapter

pytestmark = pytest.mark.torch

Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def files(
    host: PluginHost, load_model: Callable[[], Any], tmp_path: Path
) -> Callable[[str], tuple[dict[str, Any], dict[str, Any]]]:
    def make(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        method = host.method(name)
        options = method.options_model.model_validate({"r": 4})
        method.save(method.attach(load_model(), options, seed=0), str(tmp_path))
        return read_adapter(tmp_path)

    return make


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "neither `peft_type` nor `graft_method`"),
        ({"peft_type": "IA3"}, "peft_type IA3 is not supported"),
        ({"graft_method": 3}, "graft_method must be a method's name"),
        ({"peft_type": "LORA", "modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"peft_type": "LORA", "bias": "all"}, "bias 'all' is not supported"),
        ({"peft_type": "LORA", "layer_replication": [[0, 1]]}, "layer_replication is not supported"),
        ({"peft_type": "LORA", "alora_invocation_tokens": [1]}, "alora_invocation_tokens is not supported"),
        ({"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"peft_type": "LORA", "init_lora_weights": "olora"}, "changes the base weights"),
        ({"peft_type": "LORA", "fan_in_fan_out": True}, "Conv1D"),
    ],
)
def test_configurations_that_nothing_serves(config: dict[str, Any], text: str) -> None:
    with pytest.raises(AdapterFault) as caught:
        detect_method(config)
    assert text in str(caught.value)
    assert str(caught.value).startswith("adapter_config.json: ")


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"peft_type": "LORA"}, "lora"),
        ({"peft_type": "LORA", "init_lora_weights": "eva"}, "lora"),
        ({"peft_type": "LORA", "use_rslora": True}, "rslora"),
        ({"peft_type": "LORA", "use_dora": True, "use_rslora": True}, "dora"),
        ({"graft_method": "bottleneck"}, "bottleneck"),
    ],
)
def test_the_method_is_found(config: dict[str, Any], method: str) -> None:
    assert detect_method(config) == method


def nan(tensors: dict[str, Any], name: str) -> None:
    tensors[name][0, 0] = float("nan")


FAULTS: list[tuple[str, Callable[[dict[str, Any], dict[str, Any]], object], str]] = [
    ("lora", lambda c, t: t.pop(f"{Q}.lora_B.weight"), "model.layers.0.self_attn.q_proj has no lora_B"),
    ("lora", lambda c, t: t.clear(), "no module of the base model is matched"),
    ("lora", lambda c, t: c.update(r=8), "lora_A.weight has shape [4, 128], but must have [8, 128]"),
    ("lora", lambda c, t: c.update(r="8"), "r must be a positive whole number, not '8'"),
    ("lora", lambda c, t: c.update(lora_alpha="x"), "lora_alpha must be a number"),
    ("lora", lambda c, t: nan(t, f"{Q}.lora_A.weight"), "q_proj.lora_A.weight has values that are NaN"),
    ("lora", lambda c, t: t.update({f"{Q}.lora_C.weight": torch.ones(1)}), "lora_C.weight is no LoRA matrix"),
    ("lora", lambda c, t: t.update({f"{Q}x.lora_A.weight": torch.ones(4, 64)}), "no module model.layers.0.self_attn"),
    ("lora", lambda c, t: t.update({"model.norm.lora_A.weight": torch.ones(4, 64)}), "model.norm is a LlamaRMSNorm"),
    ("lora", lambda c, t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 64).int()}), "must be floating-point"),
    ("lora", lambda c, t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(64)}), "which lora does not have"),
    ("dora", lambda c, t: t.pop(f"{Q}.lora_magnitude_vector"), "has no lora_magnitude_vector"),
    ("bottleneck", lambda c, t: t.pop("layers.1.up.bias"), "layers.1.up.bias is missing"),
    ("bottleneck", lambda c, t: t.update({"layers.7.up.bias": torch.ones(64)}), "belongs to no part"),
    ("bottleneck", lambda c, t: c.update(activation="relux"), "activation 'relux' is unknown"),
    ("bottleneck", lambda c, t: c.update(r=5), "layers.0.down.weight has shape [4, 64], but must have [5, 64]"),
    ("output-head", lambda c, t: nan(t, "head.up.weight"), "head.up.weight has values that are NaN"),
    ("output-head", lambda c, t: c.pop("r"), "r must be a positive whole number, not None"),
]


@pytest.mark.parametrize(("name", "spoil", "text"), FAULTS)
def test_tensors_that_do_not_fit(
    name: str,
    spoil: Callable[[dict[str, Any], dict[str, Any]], object],
    text: str,
    host: PluginHost,
    load_model: Callable[[], Any],
    files: Callable[[str], tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    config, tensors = files(name)
    model = load_model()
    assert list(host.method(name).compile(config, tensors, model))
    spoil(config, tensors)
    with pytest.raises(AdapterFault) as caught:
        list(host.method(name).compile(config, tensors, model))
    assert text in str(caught.value)
    assert "adapter_" in str(caught.value)
