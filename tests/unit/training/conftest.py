"""A tiny base model on disk, loaded fresh for each test, and rows to train on."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from graft_plugins.manager import PluginHost
from graft_server.base_model.folder import BaseModel, read_folder
from graft_server.plugins import server_plugins
from support.tiny_model import save_tiny_model

LoadModel = Callable[[], Any]


@pytest.fixture(scope="session")
def host() -> PluginHost:
    return PluginHost.load(only="", extra=server_plugins())


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = save_tiny_model(tmp_path_factory.mktemp("base") / "tiny")
    return read_folder(folder, "tiny", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def load_model(base: BaseModel) -> LoadModel:
    """The base model in fp32, a new one at each call, with linear layers that have some weight."""
    import torch

    from graft_server.base_model.loading import load_model

    torch.set_num_threads(1)
    return lambda: load_model(base, dtype="float32", device="cpu")


@pytest.fixture
def rows() -> list[Any]:
    """Forty rows of a rule that a tiny model can learn: the answer repeats a letter of the prompt."""
    from graft_server.training.rows import TokenRow

    rng = random.Random(1)
    made = []
    for _ in range(40):
        prompt = [1, *(rng.randrange(60, 80) for _ in range(rng.randrange(3, 9)))]
        made.append(TokenRow((*prompt, *[prompt[1]] * rng.randrange(2, 5), 2), len(prompt)))
    return made
