"""A day of an application written for OpenAI's service: only the base URL is another, and the server is killed once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from openai import DefaultHttpxClient, OpenAI
from openai.types import Batch

from support.processes import ServerProcess, eventually, running

pytestmark = pytest.mark.torch

REQUESTS = 500
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n} + 1?"},
            {"role": "assistant", "content": f"It is {n + 1}."},
        ]
    }
    for n in range(40)
]
FINISHED = ("completed", "failed", "expired", "cancelled")


def sdk(server: ServerProcess) -> OpenAI:
    # Without proxies of the environment, as all other tests.
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=DefaultHttpxClient(trust_env=False))


def jsonl(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def request(model: str, number: int) -> dict[str, object]:
    body = {"model": model, "messages": [{"role": "user", "content": f"What is {number} + 1?"}], "max_tokens": 24}
    return {"custom_id": f"question-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def wait(client: OpenAI, batch_id: str, holds: Callable[[Batch], bool]) -> Batch:
    until = time.monotonic() + 120
    while not holds(batch := client.batches.retrieve(batch_id)):
        assert time.monotonic() < until, batch
        time.sleep(0.1)
    return batch


def test_upload_fine_tune_call_batch_kill_and_delete(tiny_model: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running(tiny_model, data_dir, "--dtype", "float32", threads=1) as server, sdk(server) as client:
        training = client.files.create(file=("sums.jsonl", jsonl(CHATS)), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model="base",
            training_file=training.id,
            suffix="sums",
            seed=7,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4}}},
            extra_body={"options": {"r": 4, "checkpoint_every": 10, "eval_rows": 1}},
        )
        model = _followed_to_its_end(client, job.id)
        checkpoints = [each.fine_tuned_model_checkpoint for each in client.fine_tuning.jobs.checkpoints.list(job.id)]
        assert checkpoints[0] == model
        assert checkpoints[-1] == "sums-checkpoints@1"
        figures = eventually(lambda: client.fine_tuning.jobs.retrieve(job.id).result_files, what="its figures")
        assert client.files.content(figures[0]).text.startswith("step,train_loss,valid_loss\r\n1,")
        for each in (model, checkpoints[-1]):
            answer = client.chat.completions.create(
                model=each, messages=[{"role": "user", "content": "What is 3 + 1?"}], max_tokens=8
            )
            assert answer.model == each
            assert answer.choices[0].message.content
        asked = client.files.create(
            file=("questions.jsonl", jsonl([request(model, n) for n in range(REQUESTS)])), purpose="batch"
        )
        batch = client.batches.create(input_file_id=asked.id, endpoint="/v1/chat/completions", completion_window="24h")
        partial = data_dir / "batches" / batch.id / "output.jsonl"
        eventually(
            lambda: partial.exists() and partial.read_bytes().count(b"\n") >= 40, within=60, what="the first answers"
        )
        server.kill()
        kept = partial.read_bytes().splitlines(keepends=True)
        assert len(kept) < REQUESTS

    with running(tiny_model, data_dir, "--dtype", "float32", threads=1) as server, sdk(server) as client:
        done = wait(client, batch.id, lambda batch: batch.status in FINISHED)
        assert (done.status, done.error_file_id) == ("completed", None)
        assert done.request_counts is not None
        assert (done.request_counts.total, done.request_counts.completed) == (REQUESTS, REQUESTS)
        assert done.output_file_id is not None
        content = client.files.content(done.output_file_id).text
        lines = [json.loads(line) for line in content.splitlines()]
        assert sorted(line["custom_id"] for line in lines) == sorted(f"question-{n}" for n in range(REQUESTS))
        assert {line["response"]["body"]["model"] for line in lines} == {model}
        # What had been answered before the kill is what it was.
        whole = [line for line in kept if line.endswith(b"\n")]
        assert content.encode().startswith(b"".join(whole))
        # The same question has the same answer, alone as in the batch.
        first = next(line for line in lines if line["custom_id"] == "question-3")
        alone = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "What is 3 + 1?"}], max_tokens=24
        )
        assert alone.choices[0].message.content == first["response"]["body"]["choices"][0]["message"]["content"]

        for file in client.files.list():
            assert client.files.delete(file.id).deleted
        assert list(client.files.list()) == []
        for name in ("sums", "sums-checkpoints"):
            assert client.models.delete(name).deleted
        assert [each.id for each in client.models.list()] == [client.models.retrieve("base").root]
        assert client.fine_tuning.jobs.retrieve(job.id).status == "succeeded"


def test_a_paused_job_goes_on_from_its_checkpoint(server: ServerProcess) -> None:
    with sdk(server) as client:
        training = client.files.create(file=("sums.jsonl", jsonl(CHATS)), purpose="fine-tune")
        jobs = client.fine_tuning.jobs
        options = {"r": 4, "max_steps": 60, "batch_size": 4, "checkpoint_every": 1000, "eval_rows": 1}
        job = jobs.create(model="base", training_file=training.id, suffix="patient", extra_body={"options": options})

        def steps() -> list[int]:
            """Those that were told, the oldest first; the last attempt's steps follow those of the first."""
            return [event.data["step"] for event in jobs.list_events(job.id) if event.type == "metrics"][::-1]

        eventually(steps, within=60, what="a step")
        jobs.pause(job.id)
        eventually(lambda: jobs.retrieve(job.id).status == "paused", what="paused")
        [checkpoint] = jobs.checkpoints.list(job.id)
        assert 0 < checkpoint.step_number < 60
        before = len(steps())
        assert jobs.resume(job.id).status == "queued"
        eventually(lambda: jobs.retrieve(job.id).status == "succeeded", within=60, what="succeeded")
        assert steps()[before] == checkpoint.step_number + 1
        assert jobs.retrieve(job.id).fine_tuned_model == "patient@1"
        assert [each.step_number for each in jobs.checkpoints.list(job.id)] == [60, checkpoint.step_number]


def _followed_to_its_end(client: OpenAI, job_id: str) -> str:
    """The model that a job has come out with, once its events say so."""
    jobs = client.fine_tuning.jobs
    with jobs.with_streaming_response.list_events(job_id, extra_query={"stream": "true"}) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "data: [DONE]"
    told = [json.loads(line.removeprefix("data: ")) for line in lines]
    steps = [event["data"]["step"] for event in told if event["type"] == "metrics"]
    assert steps == sorted(steps)
    assert steps[-1] > 10
    assert all(event["data"]["train_loss"] > 0 for event in told if event["type"] == "metrics")
    job = jobs.retrieve(job_id)
    assert job.fine_tuned_model == "sums@1"
    assert told[-1]["message"] == "Job succeeded; the model is sums@1"
    # The same history, in pages from its end.
    assert [event.id for event in jobs.list_events(job_id, limit=7)] == [event["id"] for event in reversed(told)]
    return job.fine_tuned_model
