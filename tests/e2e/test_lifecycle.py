"""Adapters in production through the command line: promote, gate, roll back, route, choose by the text, move between
servers, merge."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.lora_folders import write_lora
from support.processes import ServerProcess, running

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def other(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A second server with the same base model."""
    with running(tiny_model, tmp_path_factory.mktemp("other") / "data", "--dtype", "float32", threads=1) as server:
        yield server


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    pairs = [("red", "rot"), ("green", "gruen"), ("blue", "blau")]
    file.write_text("".join(json.dumps({"source": source, "target": target}) + "\n" for source, target in pairs))
    return file


@pytest.fixture(scope="module", autouse=True)
def _versions(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> None:
    for seed in (1, 2, 3):
        folder = write_lora(tmp_path_factory.mktemp("adapters") / str(seed), seed=seed)
        server.graft("adapters", "register", folder, "--name", "de", "--task", "translation")


def answering(server: ServerProcess, *words: str) -> str:
    return str(server.json("query", *words, "red", "--max-tokens", "2")["adapter"])


def test_promote_gate_rollback_and_history(server: ServerProcess, rows: Path) -> None:
    assert "de@production now is de@1" in server.graft("adapters", "promote", "de@1", "-m", "first").out
    assert answering(server, "de@production") == "de@1"
    passed = server.graft("adapters", "promote", "de@2", "production", "--gate", rows, "--min-delta", "-200")
    assert "chrf" in passed.out
    assert answering(server, "de@production") == "de@2"
    refused = server.graft("adapters", "promote", "de@3", "--gate", rows, "--min-delta", "200", code=5)
    assert "at least +200 was asked for" in refused.error
    assert answering(server, "de@production") == "de@2"
    assert "de@production now is de@1" in server.graft("adapters", "rollback", "de", "-m", "worse").out
    assert answering(server, "de@production") == "de@1"
    kinds = [event["kind"] for event in server.json("adapters", "history", "de")]
    assert kinds == ["rollback", "refused", "promote", "promote"]
    assert "no version 'de@9'" in server.graft("adapters", "promote", "de@9", code=4).error
    assert "stands for" in server.graft("adapters", "delete", "de@1", "--yes", code=5).error
    assert server.json("adapters", "show", "de@production")["ref"] == "de@1"


def test_a_route_spreads_requests_and_an_alias_survives_a_kill(tiny_model: Path, tmp_path: Path, rows: Path) -> None:
    options = ("--dtype", "float32")
    with running(tiny_model, tmp_path / "data", *options, threads=1) as server:
        folder = write_lora(tmp_path / "lora")
        for _ in range(3):
            server.graft("adapters", "register", folder, "--name", "de", "--task", "translation")
        server.graft("adapters", "promote", "de@2")
        told = server.graft("routes", "set", "translation", "de@1=50", "de@2=60", code=2)
        assert "must add up to 100" in told.err
        server.graft("routes", "set", "translation", "de@1=50", "de@2=50", "--fallback", "base", "-m", "try")
        server.kill()
    with running(tiny_model, tmp_path / "data", *options, threads=1) as server:
        assert answering(server, "de@production") == "de@2"
        with server.client() as client:
            found = Counter(
                client.predict("translation", "red", key=f"user-{n}").adapter for n in range(12) for _ in range(2)
            )
        assert set(found) == {"de@1", "de@2"}
        assert all(count % 2 == 0 for count in found.values())
        explained = server.graft("routes", "explain", "red", "--task", "translation", "--key", "user-1").out
        assert "by the caller's key (50 %)" in explained
        assert "in route 'translation'" in server.graft("adapters", "delete", "de@1", "--yes", code=5).error
        plan = server.json("adapters", "gc", "--keep", "1", "--dry-run")
        assert plan["deleted"] == []
        server.graft("routes", "delete", "translation", "--yes")
        done = server.json("adapters", "gc", "--keep", "1", "--yes")
        assert [version["ref"] for version in done["deleted"]] == ["de@1"]
        assert server.json("adapters", "show", "de")["aliases"] == {"production": 2}


def test_a_version_moves_to_another_server_and_back(server: ServerProcess, other: ServerProcess) -> None:
    pushed = server.json("adapters", "push", "de@production", "--to", other.url)
    origin = server.json("adapters", "show", "de@production")
    assert (pushed["ref"], pushed["digest"]) == ("de@1", origin["digest"])
    assert origin["ref"] in pushed["options"]["origin"]
    text = ["red lamp", "--max-tokens", "8"]
    assert other.json("query", "de", *text)["text"] == server.json("query", "de@production", *text)["text"]
    pulled = server.json("adapters", "pull", "de@1", "--from", other.url, "--name", "de-back")
    assert (pulled["ref"], pulled["digest"]) == ("de-back@1", origin["digest"])
    away = server.graft("adapters", "push", "de", "--to", "http://127.0.0.1:1", code=3)
    assert "no server answers" in away.error


def test_two_adapters_become_one(server: ServerProcess, tmp_path: Path) -> None:
    merged = server.json(
        "adapters", "merge", "de@1", "de@2", "--weights", "0.7,0.3", "--method", "cat", "--name", "both"
    )
    assert (merged["ref"], merged["task"]) == ("both@1", "translation")
    assert merged["options"]["merged_from"] == ["de@1", "de@2"]
    assert merged["options"]["merge_weights"] == [0.7, 0.3]
    assert answering(server, "both") == "both@1"
    low = write_lora(tmp_path / "low", rank=2)
    server.graft("adapters", "register", low, "--name", "low", "--task", "translation")
    refused = server.graft("adapters", "merge", "de@1", "low", "--name", "both", code=5)
    assert "ranks 4 and 2; method 'linear' needs equal ones" in refused.error
    talk = write_lora(tmp_path / "talk")
    server.graft("adapters", "register", talk, "--name", "talk", "--task", "chat")
    assert "serve different tasks" in server.graft("adapters", "merge", "de", "talk", "--name", "x", code=5).error
    one = server.graft("adapters", "merge", "de@1", "de@2", "--weights", "1", "--name", "x", code=5)
    assert "2 adapters and 1 weights" in one.error


def test_a_merged_export_loads_in_plain_transformers(server: ServerProcess, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    server.graft("adapters", "export", "de@1", "--merged", "-o", tmp_path / "full")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "full")
    prompt = "red lamp"
    with server.http() as http:
        body = {"model": "de@1", "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "logprobs": 0}
        choice = http.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)[0][ids.input_ids.shape[1] :]
    assert tokenizer.decode(tokens) == choice["text"]
