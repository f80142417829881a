"""Each method: identity at the start, learning, saving and loading, and the same model when compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from graft_plugins.manager import PluginHost
from graft_plugins.method import AdapterFault, AdapterMethod, BlockGraft, Graft, LinearGraft, LogitGraft
from graft_server.training.methods import detect_method
from graft_server.training.methods.detect import CONFIG, WEIGHTS
from graft_server.training.options import TrainingOptions
from graft_server.training.trainer import Trainer
from support.adapter_files import read_adapter

pytestmark = pytest.mark.torch

METHODS = ["lora", "rslora", "dora", "bottleneck", "output-head"]
TOKENS = torch.tensor([[1, 70, 71, 72, 60, 61, 2], [1, 61, 62, 63, 64, 65, 66]])
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda hidden: hidden,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest, host: PluginHost) -> AdapterMethod:
    return host.method(request.param)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits.float()


def attach(method: AdapterMethod, model: Any, **options: Any) -> Any:
    chosen = {"r": 4} | options
    return method.attach(model, method.options_model.model_validate(chosen), seed=3)


def scramble(model: Any) -> None:
    """Random trained parameters, far from the start."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def apply_grafts(model: Any, grafts: list[Graft]) -> None:
    """The reference meaning of the primitives, as hooks on the base model."""
    modules = dict(model.named_modules())
    for graft in grafts:
        match graft:
            case LinearGraft():
                modules[graft.module].register_forward_hook(_linear(graft))
            case BlockGraft():
                model.model.layers[graft.layer].register_forward_hook(_block(graft))
            case LogitGraft():
                model.lm_head.register_forward_hook(lambda _, inputs, output, g=graft: output + _network(g, inputs[0]))


def _linear(graft: LinearGraft) -> Callable[..., torch.Tensor]:
    def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        bias = 0 if module.bias is None else module.bias
        updated = output - bias + graft.scaling * (inputs[0] @ graft.a.T) @ graft.b.T
        return updated * (1 if graft.output_scale is None else graft.output_scale) + bias

    return hook


def _block(graft: BlockGraft) -> Callable[..., Any]:
    return lambda _, inputs, output: output + _network(graft, output)


def _network(graft: BlockGraft | LogitGraft, hidden: torch.Tensor) -> torch.Tensor:
    inner = ACTIVATIONS[graft.activation](hidden @ graft.down.T + graft.down_bias)
    return inner @ graft.up.T + graft.up_bias


def test_attaching_changes_nothing_yet(method: AdapterMethod, load_model: Callable[[], Any]) -> None:
    before = logits(load_model())
    attached = attach(method, load_model())
    assert torch.allclose(logits(attached), before, atol=1e-5)
    trainable = [name for name, parameter in attached.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in name or "graft_" in name for name in trainable)


def test_attaching_is_the_same_for_the_same_seed(method: AdapterMethod, load_model: Callable[[], Any]) -> None:
    first, second = attach(method, load_model()), attach(method, load_model())
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_training_lowers_the_loss(method: AdapterMethod, load_model: Callable[[], Any], rows: list[Any]) -> None:
    attached = attach(method, load_model(), r=8)
    options = TrainingOptions(learning_rate=2e-2, epochs=12, batch_size=8, precision="fp32", validation_rows=8)
    trainer = Trainer(attached, method, rows[8:], rows[:8], options)
    before = trainer.validation_loss()
    trainer.run()
    assert trainer.validation_loss() < before * 0.8


def test_saved_files_load_back(method: AdapterMethod, load_model: Callable[[], Any], tmp_path: Path) -> None:
    trained = attach(method, load_model())
    scramble(trained)
    method.save(trained, str(tmp_path))
    assert {CONFIG, WEIGHTS} <= {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.glob("*.bin"))
    again = attach(method, load_model())
    assert not torch.allclose(logits(again), logits(trained), atol=1e-3)
    method.load_state(again, str(tmp_path))
    assert torch.equal(logits(again), logits(trained))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_a_bottleneck_compiles_with_each_activation(
    activation: str, host: PluginHost, load_model: Callable[[], Any], tmp_path: Path
) -> None:
    check_compiled(host.method("bottleneck"), load_model, tmp_path, activation=activation)


def test_compiled_grafts_are_the_same_model(
    method: AdapterMethod, load_model: Callable[[], Any], tmp_path: Path
) -> None:
    check_compiled(method, load_model, tmp_path)


def check_compiled(method: AdapterMethod, load_model: Callable[[], Any], folder: Path, **options: Any) -> None:
    trained = attach(method, load_model(), **options)
    scramble(trained)
    method.save(trained, str(folder))
    config, tensors = read_adapter(folder)
    assert detect_method(config) == method.name
    assert method.rank(config) == 4
    base = load_model()
    plain = logits(base)
    apply_grafts(base, method.compile(config, tensors, base))
    assert torch.allclose(logits(base), logits(trained), atol=2e-4)
    assert not torch.allclose(plain, logits(trained), atol=1e-2)


def test_a_model_without_weights_is_enough_to_compile(
    method: AdapterMethod, base: Any, load_model: Callable[[], Any], tmp_path: Path
) -> None:
    from graft_server.base_model.loading import load_meta_model

    method.save(attach(method, load_model()), str(tmp_path))
    config, tensors = read_adapter(tmp_path)
    if method.name == "dora":
        with pytest.raises(AdapterFault, match="DoRA needs the base model's weights"):
            list(method.compile(config, tensors, load_meta_model(base)))
    else:
        assert list(method.compile(config, tensors, load_meta_model(base)))


@pytest.mark.parametrize("name", ["lora", "rslora", "dora"])
def test_peft_itself_reads_our_files(
    name: str, host: PluginHost, load_model: Callable[[], Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    method = host.method(name)
    trained = attach(method, load_model(), target_modules=["q_proj", "down_proj"])
    scramble(trained)
    method.save(trained, str(tmp_path))
    assert torch.allclose(logits(PeftModel.from_pretrained(load_model(), str(tmp_path))), logits(trained), atol=1e-5)


def test_ranks_and_alphas_by_pattern(host: PluginHost, load_model: Callable[[], Any], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 6},
        alpha_pattern={"v_proj": 40},
    )
    model = get_peft_model(load_model(), config)
    scramble(model)
    model.save_pretrained(tmp_path)
    read, tensors = read_adapter(tmp_path)
    method = host.method("lora")
    base = load_model()
    grafts = method.compile(read, tensors, base)
    assert method.rank(read) == 6
    apply_grafts(base, grafts)
    assert torch.allclose(logits(base), logits(model), atol=1e-4)


def test_unknown_target_modules_are_named(host: PluginHost, load_model: Callable[[], Any]) -> None:
    with pytest.raises(AdapterFault, match="no linear module 'q_pro'; did you mean 'q_proj'"):
        attach(host.method("lora"), load_model(), target_modules=["q_pro"])


@pytest.mark.parametrize("name", METHODS)
def test_gpt2_is_refused_by_lora_and_learned_by_the_others(name: str, host: PluginHost, rows: list[Any]) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=64, n_embd=32, n_layer=2, n_head=2))
    method = host.method(name)
    if "lora" in name or name == "dora":
        with pytest.raises(AdapterFault, match="Conv1D"):
            attach(method, model)
        return
    trainer = Trainer(attach(method, model), method, rows[8:], rows[:8], TrainingOptions(epochs=6, learning_rate=0.02))
    before = trainer.validation_loss()
    trainer.run()
    assert trainer.validation_loss() < before
