"""Merged adapters are what PEFT makes of the same ones, on the same model."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

MODULES = ["q_proj", "v_proj"]
NAMES = ("a", "b")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from support.tiny_model import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


def peft_model(base: Path, folder: Path, ranks=(4, 4), alphas=(8, 16), **config):
    """A model with two random adapters, which are saved too."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = [
        LoraConfig(r=rank, lora_alpha=alpha, target_modules=MODULES, init_lora_weights=False, **config)
        for rank, alpha in zip(ranks, alphas, strict=True)
    ]
    model = get_peft_model(model, settings[0], adapter_name="a")
    model.add_adapter("b", settings[1])
    model.save_pretrained(folder, selected_adapters=list(NAMES))
    return model


def logits(model):
    import torch

    with torch.inference_mode():
        return model(torch.arange(1, 20)[None]).logits


def loaded(base: Path, folder: Path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder)


@pytest.mark.parametrize(
    ("method", "theirs", "density"),
    [("linear", "linear", 1.0), ("cat", "cat", 1.0), ("ties", "ties", 0.5), ("dare", "dare_linear", 1.0)],
)
def test_a_merge_is_what_peft_computes(base, tmp_path, method, theirs, density):
    import torch

    from graft_server.composition.merge import merge

    model = peft_model(base, tmp_path / "two")
    more = {} if method in ("linear", "cat") else {"density": density}
    torch.manual_seed(3)
    model.add_weighted_adapter(list(NAMES), [0.7, 0.3], "both", combination_type=theirs, **more)
    model.set_adapter("both")
    target = tmp_path / "merged"
    target.mkdir()
    folders = [tmp_path / "two" / name for name in NAMES]
    rank = merge(folders, [0.7, 0.3], target, method=method, density=density, seed=3)
    assert rank == (8 if method == "cat" else 4)
    ours = logits(loaded(base, target))
    torch.testing.assert_close(ours, logits(model), atol=1e-4, rtol=1e-3)
    model.set_adapter("a")
    assert not torch.allclose(ours, logits(model), atol=1e-3)


def test_cat_is_exact_for_different_ranks_and_rslora(base, tmp_path):
    """Beside the sum of the updates themselves: PEFT scales a concatenated rsLoRA by the root of its rank once more."""
    import torch
    from transformers import AutoModelForCausalLM

    from graft_server.composition.merge import merge

    model = peft_model(base, tmp_path / "two", ranks=(4, 2), alphas=(8, 8), use_rslora=True)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            update = 0.7 * module.get_delta_weight("a") + 0.3 * module.get_delta_weight("b")
            plain.get_submodule(name).weight.data += update.detach()
    target = tmp_path / "merged"
    target.mkdir()
    folders = [tmp_path / "two" / name for name in NAMES]
    assert merge(folders, [0.7, 0.3], target, method="cat", density=1, seed=0) == 6
    torch.testing.assert_close(logits(loaded(base, target)), logits(plain), atol=1e-3, rtol=1e-2)


def test_dare_drops_by_the_seed(base, tmp_path):
    from graft_server.composition.merge import merge

    peft_model(base, tmp_path / "two")
    folders = [tmp_path / "two" / name for name in NAMES]
    written = []
    for number, seed in enumerate((1, 1, 2)):
        target = tmp_path / str(number)
        target.mkdir()
        merge(folders, [0.5, 0.5], target, method="dare", density=0.5, seed=seed)
        written.append((target / "adapter_model.safetensors").read_bytes())
    assert written[0] == written[1] != written[2]


def test_what_does_not_fit_is_refused_with_the_reason(base, tmp_path):
    from graft_plugins.method import AdapterFault
    from graft_server.composition.merge import merge
    from support.lora_folders import write_lora

    peft_model(base, tmp_path / "two", ranks=(4, 2))
    folders = [tmp_path / "two" / name for name in NAMES]
    options = {"density": 0.5, "seed": 0}
    with pytest.raises(AdapterFault, match="ranks 4 and 2; method 'linear' needs equal ones, `cat` does not"):
        merge(folders, [0.5, 0.5], tmp_path, method="linear", **options)
    other = write_lora(tmp_path / "other")
    with pytest.raises(AdapterFault, match="update different modules"):
        merge([folders[0], other], [0.5, 0.5], tmp_path, method="cat", **options)
    wide = write_lora(tmp_path / "wide", width=32)
    with pytest.raises(AdapterFault, match="different shapes"):
        merge([other, wide], [0.5, 0.5], tmp_path, method="cat", **options)
    dora = write_lora(tmp_path / "dora", use_dora=True)
    with pytest.raises(AdapterFault, match="'dora' adapter can't be merged"):
        merge([other, dora], [0.5, 0.5], tmp_path, method="cat", **options)


def test_a_merged_checkpoint_is_the_base_with_the_adapter_and_nothing_of_us(base, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from graft_server.composition.checkpoint import save_merged

    model = peft_model(base, tmp_path / "two")
    model.set_adapter("a")
    target = tmp_path / "merged"
    target.mkdir()
    save_merged(base, tmp_path / "two" / "a", target)
    plain = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-3, rtol=1e-2)
    assert AutoTokenizer.from_pretrained(target)("a").input_ids == AutoTokenizer.from_pretrained(base)("a").input_ids
    text = b"".join(file.read_bytes() for file in target.glob("*.json")).lower()
    assert b"graft" not in text
    assert b"lora" not in text


def without_prefix(adapter: Path) -> Path:
    """The same adapter with its tensors named without PEFT's prefix, as other libraries write them."""
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    save_file({name.removeprefix("base_model.model."): tensor for name, tensor in load_file(file).items()}, file)
    return adapter


def test_a_merged_checkpoint_of_an_adapter_without_peft_s_prefix_has_it_all(base, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from graft_server.composition.checkpoint import save_merged

    model = peft_model(base, tmp_path / "two")
    save_merged(base, without_prefix(tmp_path / "two" / "a"), tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-3, rtol=1e-2)


def test_adapters_with_and_without_peft_s_prefix_merge_and_peft_reads_the_result(base, tmp_path):
    import torch

    from graft_server.composition.merge import merge

    model = peft_model(base, tmp_path / "two")
    model.add_weighted_adapter(list(NAMES), [0.7, 0.3], "both", combination_type="linear")
    model.set_adapter("both")
    (tmp_path / "merged").mkdir()
    folders = [without_prefix(tmp_path / "two" / "a"), tmp_path / "two" / "b"]
    merge(folders, [0.7, 0.3], tmp_path / "merged", method="linear", density=1, seed=0)
    torch.testing.assert_close(logits(loaded(base, tmp_path / "merged")), logits(model), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("variant", [{}, {"use_dora": True}])
def test_an_update_of_tied_output_weights_leaves_the_embeddings_alone(base, tmp_path, variant):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from graft_server.composition.checkpoint import save_merged

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["lm_head", "q_proj"], init_lora_weights=False, **variant)
    model = get_peft_model(model, config)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    save_merged(base, tmp_path / "adapter", tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-3, rtol=1e-2)
