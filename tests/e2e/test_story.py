"""What a person does in a day, with the real base model: train an adapter, use it in every way, take it elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from graft_client import AsyncClient
from graft_client.calls import prediction
from graft_client.schemas.predict import SamplingOverrides
from support.processes import GRAFT, ServerProcess
from support.serving import sse

pytestmark = [pytest.mark.torch, pytest.mark.model]

BASE = "SmolLM2-135M-Instruct.Q4_1"
TEXT = "Restart the hub"
STEPS = 8


@dataclass(frozen=True)
class Trained:
    """The adapter of this story, and what the command that trained it printed."""

    server: ServerProcess
    out: str
    err: str


@pytest.fixture(scope="module")
def trained(real_server: ServerProcess, translations: Path) -> Trained:
    done = real_server.graft(
        *("train", "translation", "--data", translations, "--name", "de-strings"),
        *("--set", f"max_steps={STEPS}", "--set", "epochs=2", "--set", "batch_size=8"),
        *("--set", "eval_rows=4", "--set", "r=8", "--seed", "7"),
    )
    return Trained(real_server, done.out, done.err)


@pytest.fixture(scope="module")
def server(trained: Trained) -> ServerProcess:
    return trained.server


@pytest.fixture(scope="module")
def answer(server: ServerProcess) -> str:
    """What the adapter says to ``TEXT``."""
    return str(server.json("query", "de-strings", TEXT)["text"])


@pytest.fixture(scope="module")
def exported(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "de-strings"
    server.graft("adapters", "export", "de-strings@1", "-o", folder)
    return folder


def test_training_tells_its_progress_and_its_result(trained: Trained) -> None:
    assert "published de-strings@1" in trained.out
    lines = trained.out.splitlines()
    assert lines[0].split() == ["metric", "base", "de-strings@1", "change", "copy"]
    assert lines[1].startswith("chrf ")
    assert "held-out rows; the main metric is chrf" in trained.out
    assert "42 rows (jsonl)" in trained.err
    assert re.search(r"training step \d of 8  loss \d", trained.err)


def test_the_job_is_listed_and_shown(server: ServerProcess) -> None:
    (listed,) = server.json("jobs", "list")
    assert (listed["state"], listed["version"], listed["adapter"]) == ("succeeded", "de-strings@1", "de-strings")
    shown = server.json("jobs", "show", listed["id"])
    assert shown == listed
    assert shown["options"]["max_steps"] == STEPS
    assert shown["train_tokens"] > 0
    assert (shown["progress"]["step"], shown["progress"]["total_steps"]) == (STEPS, STEPS)
    plain = server.graft("jobs", "show", listed["id"]).out
    assert "succeeded" in plain
    assert "de-strings@1" in plain
    assert listed["id"] in server.graft("jobs", "list").out


def test_the_version_keeps_its_lineage(server: ServerProcess, translations: Path) -> None:
    (adapter,) = server.json("adapters", "list")
    assert (adapter["name"], adapter["task"], adapter["latest"]) == ("de-strings", "translation", 1)
    version = server.json("adapters", "show", "de-strings@1")
    (job,) = server.json("jobs", "list")
    (dataset,) = server.json("datasets", "list")
    status = server.json("status")
    assert version["job"] == job["id"]
    assert version["dataset"] == dataset["id"]
    assert dataset["files"][0]["name"] == translations.name
    assert version["base_fingerprint"] == status["base_model"]["fingerprint"]
    assert (version["plugin"], version["plugin_version"]) == ("graft_plugins.tasks.translation", status["version"])
    assert version["seed"] == 7
    assert version["options"]["r"] == 8
    assert version["method"] == "lora"
    evaluation = version["evaluation"]
    for report in (evaluation["base"], evaluation["adapter"], evaluation["baselines"]["copy"]):
        assert report["primary"] == "chrf"
        assert set(report["metrics"]) >= {"chrf", "bleu"}
        assert "nrefs:1" in report["metrics"]["chrf"]["signature"]
    assert evaluation["adapter"]["rows"] == evaluation["base"]["rows"] > 0
    plain = server.graft("adapters", "show", "de-strings@1").out
    for part in (dataset["id"], job["id"], version["base_fingerprint"][:12], version["digest"], "chrf"):
        assert part in plain


def test_every_way_to_ask_gives_the_same_answer(server: ServerProcess, answer: str) -> None:
    assert answer
    assert answer != server.json("query", "base", TEXT, "--task", "translation")["text"]
    assert server.graft("query", "de-strings", TEXT).out == answer + "\n"
    assert server.graft("query", "de-strings@1", TEXT).out == answer + "\n"
    assert server.graft("query", "--task", "translation", TEXT).out == answer + "\n"
    assert server.graft("query", "de-strings", stdin=TEXT).out == answer + "\n"
    document = server.json("query", "de-strings", "--input", json.dumps({"text": TEXT}))
    assert (document["adapter"], document["task"], document["text"]) == ("de-strings@1", "translation", answer)
    assert document["output"]["translation"] == answer
    assert document["usage"]["completion_tokens"] > 0
    assert 0 < document["timings"]["first_token"] <= document["timings"]["total"]


def test_a_placeholder_that_got_lost_is_told(server: ServerProcess) -> None:
    document = server.json("query", "de-strings", "Hi {first_name}", "--max-tokens", "1")
    assert document["finish_reason"] == "length"
    assert document["output"]["missing_placeholders"] == ["{first_name}"]


def test_an_answer_is_printed_while_it_is_written(server: ServerProcess) -> None:
    command = [GRAFT, "query", "base", "--task", "chat", "Tell me a long story about a cat.", "--max-tokens", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={"GRAFT_URL": server.url}) as asked:
        assert asked.stdout is not None
        first = asked.stdout.read1()
        # Most of the sixty tokens are still to come.
        assert asked.poll() is None
        rest = asked.stdout.read()
        assert asked.wait() == 0
    assert first
    assert len(rest) > len(first)


async def test_the_async_client_streams(server: ServerProcess, answer: str) -> None:
    async with AsyncClient(server.url) as client:
        events = [event async for event in client.predict_stream("de-strings", TEXT)]
    *deltas, last = events
    assert [event.event for event in deltas] == ["delta"] * len(deltas)
    assert len(deltas) > 1
    assert "".join(event.delta or "" for event in deltas).strip() == answer
    assert last.result is not None
    assert (last.result.adapter, last.result.text) == ("de-strings@1", answer)


def test_a_file_of_requests_is_answered_and_resumed(
    server: ServerProcess, translations: Path, answer: str, tmp_path: Path
) -> None:
    sources = sorted((json.loads(line)["source"] for line in translations.read_text().splitlines()), key=len)[:9]
    rows: list[dict[str, Any]] = [{"id": number, "text": text} for number, text in enumerate([TEXT, *sources])]
    rows[3] = {"id": 3, "text": "?", "source_language": 5}
    requests, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests.write_text("".join(json.dumps(row) + "\n" for row in rows))

    first = server.graft("predict", "de-strings", requests, "-o", output, "--json", code=1)
    assert first.document == {"output": str(output), "rows": 10, "failed": [4]}
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in written] == list(range(10))
    assert written[0]["text"] == answer
    assert written[3]["problem"]["code"] == "invalid-request"
    assert "source_language" in written[3]["problem"]["detail"]

    # Nine are done; the tenth is corrected, and only it is asked.
    rows[3] = {"id": 3, "text": TEXT}
    requests.write_text("".join(json.dumps(row) + "\n" for row in rows))
    second = server.graft("predict", "de-strings", requests, "-o", output)
    assert "going on: 9 of 10 rows were done before" in second.err
    resumed = [json.loads(line) for line in output.read_text().splitlines()]
    assert resumed[3]["text"] == answer
    assert [row for row in resumed if row["id"] != 3] == [row for row in written if row["id"] != 3]
    assert not output.with_name("out.jsonl.partial").exists()
    refused = server.graft("predict", "de-strings", requests, "-o", output, code=2)
    assert "is there and complete; give --force to replace it" in refused.err


def test_evaluation_against_the_base(server: ServerProcess, translations: Path) -> None:
    done = server.graft("evaluate", "de-strings", "--data", translations, "--against", "base", "--limit", "2")
    lines = done.out.splitlines()
    assert lines[0].split() == ["metric", "base", "de-strings@1", "change", "copy"]
    assert lines[1].startswith("chrf ")
    assert "2 held-out rows; the main metric is chrf" in done.out


def test_peft_gives_the_same_tokens(server: ServerProcess, exported: Path, answer: str) -> None:
    """The exported folder in PEFT itself, on the same base model in the same precision."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from demo.data import base_model_spec, cache_dir
    from graft_server.base_model import resolve

    base = resolve(base_model_spec(), cache_dir()).path
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, exported).eval()
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "system", "content": "Translate from English to German."}, {"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for text in (TEXT, "The battery is low")
    ]
    with server.http() as http:
        body = {"model": "de-strings", "prompt": prompts, "max_tokens": 10, "temperature": 0, "logprobs": 0}
        choices = http.post("/v1/completions", json=body).raise_for_status().json()["choices"]
    for prompt, choice in zip(prompts, choices, strict=True):
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            generated = model.generate(**ids, max_new_tokens=10, do_sample=False)[0][ids.input_ids.shape[1] :]
        tokens = [token for token in generated.tolist() if token not in tokenizer.all_special_ids]
        assert choice["logprobs"]["tokens"] == [tokenizer.decode([token]) for token in tokens]
        assert choice["text"] == tokenizer.decode(tokens)
    # The task asks with the very prompt that was written here by hand.
    assert answer.startswith(choices[0]["text"].split("\n")[0].strip())


def test_an_exported_folder_can_be_registered_again(server: ServerProcess, exported: Path, answer: str) -> None:
    version = server.json("adapters", "register", exported, "--name", "de-again", "--task", "translation")
    assert version["ref"] == "de-again@1"
    assert version["digest"] == server.json("adapters", "show", "de-strings@1")["digest"]
    assert server.graft("query", "de-again", TEXT).out == answer + "\n"
    # Its digest is the other adapter's as well, which keeps its files.
    server.graft("adapters", "delete", "de-again", "--yes")
    assert server.graft("query", "de-strings", TEXT).out == answer + "\n"
    gone = server.graft("query", "de-again", TEXT, code=4)
    assert "no adapter 'de-again'" in gone.error


def test_a_conversation_through_stdin(server: ServerProcess) -> None:
    said = server.graft("chat", "base", "--max-tokens", "12", stdin="What is the capital of France?\n/reset\nHello\n")
    first, *_ = said.out.splitlines()
    assert "Paris" in first
    told = server.graft("chat", "de-strings", "--json", stdin=f"{TEXT}\n/quit\nnever asked\n")
    (line,) = told.out.splitlines()
    assert json.loads(line)["adapter"] == "de-strings@1"


def test_one_bulk_request_for_several_adapters(server: ServerProcess, exported: Path) -> None:
    server.graft("adapters", "register", exported, "--name", "de-other", "--task", "translation")
    brief = SamplingOverrides(max_tokens=8)
    items = [
        prediction(adapter, text, task="translation" if adapter == "base" else None, sampling=brief)
        for text in (TEXT, "The battery is low")
        for adapter in ("de-strings", "de-other", "de-strings@1", "base")
    ]
    with server.client() as client:
        alone = [client.predict(item.adapter, item.text or "", task=item.task, sampling=brief) for item in items]
        together = sorted(client.predict_bulk(items), key=lambda line: line.index)
    assert [line.index for line in together] == list(range(len(items)))
    results = [line.result for line in together]
    assert [result and (result.adapter, result.text) for result in results] == [
        (single.adapter, single.text) for single in alone
    ]
    assert Counter(result.adapter for result in results if result) == {"de-strings@1": 4, "de-other@1": 2, "base": 2}


def test_models_are_listed_as_openai_does(server: ServerProcess) -> None:
    with server.http() as http:
        models = http.get("/v1/models").raise_for_status().json()
        assert models["object"] == "list"
        by_id = {model["id"]: model for model in models["data"]}
        assert models["data"][0]["id"] == BASE
        assert by_id["de-strings"]["parent"] == BASE
        assert by_id["de-strings"]["root"] == "de-strings@1"
        assert http.get("/v1/models/de-strings@1").json()["id"] == "de-strings@1"
        missing = http.get("/v1/models/de-string")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(("model", "served"), [("de-strings", "de-strings@1"), ("de-strings@1", "de-strings@1")])
def test_chat_completions_of_an_adapter(server: ServerProcess, answer: str, model: str, served: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": TEXT}]}
    with server.http() as http:
        response = http.post("/v1/chat/completions", json=body).raise_for_status()
    document = response.json()
    assert response.headers["x-graft-adapter"] == document["model"] == served
    (choice,) = document["choices"]
    assert choice["message"] == {"role": "assistant", "content": answer, "refusal": None}
    assert choice["finish_reason"] in ("stop", "length")
    usage = document["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0


@pytest.mark.parametrize("model", ["base", BASE])
def test_chat_completions_of_the_base(server: ServerProcess, model: str) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    with server.http() as http:
        body = {"model": model, "messages": messages, "max_tokens": 12, "temperature": 0}
        document = http.post("/v1/chat/completions", json=body).raise_for_status().json()
    assert "Paris" in document["choices"][0]["message"]["content"]


def test_a_chat_completion_streams(server: ServerProcess, answer: str) -> None:
    body = {
        "model": "de-strings",
        "messages": [{"role": "user", "content": TEXT}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with server.http() as http:
        response = http.post("/v1/chat/completions", json=body).raise_for_status()
    assert response.headers["content-type"].startswith("text/event-stream")
    *frames, done = [event["data"] for event in sse(response.text)]
    assert done == "[DONE]"
    *chunks, usage = [json.loads(frame) for frame in frames]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces).strip() == answer
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0


def test_completions_and_an_unknown_model(server: ServerProcess) -> None:
    with server.http() as http:
        body = {"model": "base", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
        document = http.post("/v1/completions", json=body).raise_for_status().json()
        assert "Paris" in document["choices"][0]["text"]
        for route, content in (
            ("completions", {"prompt": "Hi"}),
            ("chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ):
            missing = http.post(f"/v1/{route}", json={"model": "de-strngs", **content})
            assert missing.status_code == 404
            error = missing.json()["error"]
            assert (error["code"], error["type"]) == ("model_not_found", "invalid_request_error")
            assert "did you mean 'de-strings'?" in error["message"]


def test_deleting_a_version_leaves_the_others(server: ServerProcess, exported: Path) -> None:
    for _ in range(2):
        server.graft("adapters", "register", exported, "--name", "short-lived", "--task", "translation")
    server.graft("adapters", "delete", "short-lived@1", "--yes")
    assert [version["ref"] for version in server.json("adapters", "show", "short-lived")["versions"]] == [
        "short-lived@2"
    ]
    server.graft("adapters", "delete", "short-lived", "--yes")
    assert "de-strings" in {adapter["name"] for adapter in server.json("adapters", "list")}
    assert "no adapter 'short-lived'" in server.graft("adapters", "show", "short-lived", code=4).error
