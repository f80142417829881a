"""Loading: a frozen model for serving, a shape-only one for checks, and the real base model end to end."""

from __future__ import annotations

import dataclasses

import pytest

from demo.data import base_model_spec, cache_dir
from graft_server.base_model import BaseModelError, resolve
from graft_server.base_model.loading import load_meta_model, load_model, load_tokenizer
from graft_server.base_model.prompt import encode_prompt

pytestmark = pytest.mark.torch


@pytest.fixture
def base(tiny_folder, tmp_path):
    return resolve(str(tiny_folder), tmp_path)


def test_a_loaded_model_is_frozen_and_in_the_precision_asked_for(base):
    import torch

    model = load_model(base, dtype="float32", device="cpu")
    assert not model.training
    assert all(not parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(base, dtype="bfloat16", device="cpu").parameters()} == {torch.bfloat16}


def test_a_meta_model_has_the_shapes_and_no_memory(base):
    real = load_model(base, dtype="float32", device="cpu")
    meta = load_meta_model(base)
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    assert {n: p.shape for n, p in meta.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}


def test_what_can_not_be_loaded_is_said_in_a_sentence(base, tmp_path):
    gone = dataclasses.replace(base, path=tmp_path)
    with pytest.raises(BaseModelError, match="tokenizer can't be loaded"):
        load_tokenizer(gone)
    with pytest.raises(BaseModelError, match="model can't be loaded on cpu"):
        load_model(gone, dtype="float32", device="cpu")


@pytest.mark.model
def test_the_real_base_model_knows_the_capital_of_france():
    import torch

    base = resolve(base_model_spec(), cache_dir())
    assert (base.architecture, base.context_length, base.parameters) == ("LlamaForCausalLM", 8192, 134_515_008)
    tokenizer = load_tokenizer(base)
    model = load_model(base, dtype="bfloat16", device="cpu")
    prompt = encode_prompt(tokenizer, (), "The capital of France is")
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False)[0, len(prompt) :]
    assert tokenizer.decode(answer).strip().startswith("Paris")
