"""Servers that tests share: the real base model, started once a run, and a tiny one, started once a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.data import base_model_spec
from support.babbling_model import save_babbling_model
from support.processes import ServerProcess, running

TRANSLATIONS = Path(__file__).parents[1] / "fixtures" / "translation-de.jsonl"


@pytest.fixture(scope="session")
def translations() -> Path:
    """42 real rows, English to German."""
    return TRANSLATIONS


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with SmolLM2-135M-Instruct in fp32."""
    data_dir = tmp_path_factory.mktemp("real") / "data"
    with running(base_model_spec(), data_dir, "--dtype", "float32") as server:
        yield server


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of 64 hidden units and a context of 4096 tokens, each a byte."""
    return save_babbling_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the tiny model in fp32. Tests leave it running and ready."""
    data_dir = tmp_path_factory.mktemp("tiny") / "data"
    # A model this small only loses by more threads, most of all where other processes keep the cores busy.
    with running(tiny_model, data_dir, "--dtype", "float32", threads=1, max_body_mib="1") as server:
        yield server
