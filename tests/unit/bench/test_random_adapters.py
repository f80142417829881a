"""Random adapters for load tests are such as PEFT and the engine read, and no two are alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graft_server.base_model.folder import BaseModel, read_folder
from graft_server.base_model.loading import load_meta_model, load_model
from graft_server.bench.random_adapters import RandomLora, locate
from graft_server.engine.adapter_files import read_grafts
from graft_server.engine.base import AdapterSource
from support.adapter_files import read_adapter
from support.adapters import methods
from support.tiny_model import save_tiny_model

pytestmark = pytest.mark.torch

RANK = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = save_tiny_model(tmp_path_factory.mktemp("base") / "tiny")
    return read_folder(folder, "tiny", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def adapter(base: BaseModel, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    RandomLora(base, rank=RANK).write(folder, seed=1)
    return folder


def test_the_engine_reads_it(base: BaseModel, adapter: Path) -> None:
    source = AdapterSource("bench@1", 1, str(adapter), "lora", RANK)
    grafts = list(read_grafts(source, methods(), load_meta_model(base), max_rank=RANK))
    # Two layers of seven linear modules; the output layer is not among them.
    assert len({graft.module for graft in grafts}) == len(grafts) == 14
    assert all(graft.scaling == 1.0 and graft.a.shape[0] == RANK for graft in grafts)


def test_peft_attaches_every_matrix_and_the_answers_change(base: BaseModel, adapter: Path) -> None:
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        plain = load_model(base, dtype="float32", device="cpu")(tokens).logits
        attached = PeftModel.from_pretrained(load_model(base, dtype="float32", device="cpu"), adapter)
        changed = attached(tokens).logits
    _, tensors = read_adapter(adapter)
    # Otherwise PEFT looks the base model's vocabulary up on the hub.
    state = get_peft_model_state_dict(attached, save_embedding_layers=False)
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in tensors.items())
    assert not torch.allclose(changed, plain, atol=1e-6)


def test_a_seed_gives_the_same_weights_and_another_one_gives_others(base: BaseModel, tmp_path: Path) -> None:
    maker = RandomLora(base, rank=RANK)
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        maker.write(tmp_path / name, seed=seed)
    one, again, two = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "again", "two"))
    assert one == again != two


def test_the_base_model_is_found_as_for_serving(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    found = locate(str(base.path))
    assert (found.path, found.fingerprint) == (base.path, base.fingerprint)
    assert (tmp_path / "cache").is_dir()
