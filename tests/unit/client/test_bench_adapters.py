"""Random adapters of ``graft bench``: registered for a run, deleted behind it, found again when they were kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from graft_client.schemas.adapters import AdapterInfo, VersionInfo
from unit.client import samples
from unit.client.conftest import Graft
from unit.client.little_server import Answer, Asked, LittleServer, document, problem
from unit.client.streams import streaming

NAMES = [f"bench-r4-{number:04}" for number in (1, 2, 3)]
BENCH = ("bench", "--random-adapters", "3", "--rank", "4", "--requests", "6")


class Maker:
    """Stands for the server's: writes a folder with the seed in it, without torch."""

    def __init__(self, base: str, *, rank: int) -> None:
        self._made_of = (base, rank)

    def write(self, folder: Path, *, seed: int) -> None:
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps([*self._made_of, seed]))
        (folder / "adapter_model.safetensors").write_bytes(b"")


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("graft_server.bench.random_adapters")
    module.RandomLora = Maker  # type: ignore[attr-defined]
    module.locate = lambda spec: spec  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def serving(server: LittleServer, tmp_path: Path) -> LittleServer:
    """A server with a base model on this machine and no adapters, that takes every one."""
    base = samples.STATUS.base_model.model_copy(update={"path": str(tmp_path), "fingerprint": "f" * 64})
    server.on("GET", "/api/status", document(samples.STATUS.model_copy(update={"base_model": base})))
    server.on("GET", "/api/adapters", document([]))

    def register(asked: Asked) -> Answer:
        fields, _ = asked.form()
        return document(published(fields["name"]), 201)

    server.on("POST", "/api/adapters", register)
    server.on("POST", "/v1/completions", streaming())
    for name in NAMES:
        server.on("DELETE", f"/api/adapters/{name}", Answer(204))
        server.on("DELETE", f"/api/adapters/{name}/versions/1", Answer(204))
    return server


def published(name: str, **fields: str) -> VersionInfo:
    return samples.version(1).model_copy(update={"adapter": name, "ref": f"{name}@1", **fields})


def kept(name: str, fingerprint: str) -> AdapterInfo:
    """An adapter of an earlier run."""
    version = published(name, base_fingerprint=fingerprint)
    return samples.ADAPTER.model_copy(update={"name": name, "latest": 1, "versions": [version]})


def registered(server: LittleServer) -> list[tuple[str, Any]]:
    forms = [asked.form() for asked in server.asked if asked.method == "POST" and asked.path == "/api/adapters"]
    return [(fields["name"], json.loads(files["adapter_config.json"])) for fields, files in forms]


def deleted(server: LittleServer) -> list[str]:
    return [asked.path.removeprefix("/api/adapters/") for asked in server.asked if asked.method == "DELETE"]


@pytest.mark.usefixtures("making")
def test_they_are_registered_asked_and_deleted(serving: LittleServer, graft: Graft, tmp_path: Path) -> None:
    result = graft(*BENCH, "--json")
    assert result.exit_code == 0, result.output
    assert registered(serving) == [(name, [str(tmp_path), 4, seed]) for seed, name in enumerate(NAMES, start=1)]
    assert deleted(serving) == NAMES
    assert list(json.loads(result.stdout)["models"]) == NAMES
    first = serving.paths().index("POST /v1/completions")
    last = len(serving.paths()) - serving.paths()[::-1].index("POST /v1/completions")
    assert serving.paths()[:first].count("POST /api/adapters") == len(serving.paths()[last:]) == 3


@pytest.mark.usefixtures("making")
def test_kept_ones_are_used_again_and_stay(serving: LittleServer, graft: Graft) -> None:
    assert graft(*BENCH, "--keep").exit_code == 0
    assert deleted(serving) == []
    serving.asked.clear()
    serving.on("GET", "/api/adapters", document([kept(NAMES[0], "f" * 64), kept(NAMES[1], "f" * 64)]))
    assert graft(*BENCH).exit_code == 0
    assert [name for name, _ in registered(serving)] == deleted(serving) == [NAMES[2]]


@pytest.mark.usefixtures("making")
def test_one_of_another_base_model_gets_a_new_version_which_alone_is_deleted(
    serving: LittleServer, graft: Graft
) -> None:
    serving.on("GET", "/api/adapters", document([kept(NAMES[0], "e" * 64)]))
    assert graft(*BENCH).exit_code == 0
    assert [name for name, _ in registered(serving)] == NAMES
    assert deleted(serving) == [f"{NAMES[0]}/versions/1", *NAMES[1:]]


@pytest.mark.usefixtures("making")
def test_those_that_were_registered_are_deleted_when_one_is_refused(serving: LittleServer, graft: Graft) -> None:
    refusal = problem(422, "rank 4 is more than this server serves")
    serving.on("POST", "/api/adapters", document(published(NAMES[0]), 201), refusal)
    result = graft(*BENCH)
    assert result.exit_code == 5
    assert "rank 4 is more than this server serves" in result.stderr
    assert deleted(serving) == NAMES[:1]


@pytest.mark.usefixtures("making")
def test_one_that_can_not_be_deleted_is_told_behind_the_figures(serving: LittleServer, graft: Graft) -> None:
    serving.on("DELETE", f"/api/adapters/{NAMES[1]}", problem(409, "it is being trained"))
    result = graft(*BENCH)
    assert result.exit_code == 0
    assert "6 answered" in result.stdout
    assert f"{NAMES[1]}@1 was not deleted: it is being trained" in result.stderr
    assert deleted(serving) == NAMES


def test_a_base_model_that_is_elsewhere_must_be_named(serving: LittleServer, graft: Graft) -> None:
    serving.on("GET", "/api/status", document(samples.STATUS))
    result = graft(*BENCH)
    assert result.exit_code == 2
    assert "random adapters need the shapes of smollm2, whose files are not on this machine" in result.stderr
    assert "--base-model" in result.stderr


@pytest.mark.usefixtures("making")
def test_the_base_model_can_be_named(serving: LittleServer, graft: Graft) -> None:
    serving.on("GET", "/api/status", document(samples.STATUS))
    assert graft(*BENCH, "--base-model", "org/name").exit_code == 0
    assert registered(serving)[0][1] == ["org/name", 4, 1]


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "graft_server.bench.random_adapters", raising=False)


@pytest.mark.usefixtures("without_torch")
def test_without_the_servers_packages_it_says_what_to_install(serving: LittleServer, graft: Graft) -> None:
    result = graft(*BENCH)
    assert result.exit_code == 1
    assert "pip install 'graftwork[server]'" in result.stderr
    assert registered(serving) == []
