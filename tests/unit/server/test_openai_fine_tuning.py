"""``/v1/fine_tuning/jobs`` by the official OpenAI SDK; the queue's work is done by hand, as the job runner does it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from graft_client.schemas.jobs import JobProgress, JobState
from graft_server.registry import Lineage
from graft_server.registry.records import JobRecord
from graft_server.services import Services
from graft_server.serving.tuning_results import keep_figures
from support.openai_sdk import Sdk, openai_sdk
from support.scripted_engine import FINGERPRINT
from support.serving import adapter_files, engine_of

CHATS = [
    {"messages": [{"role": "user", "content": f"Count to {n}"}, {"role": "assistant", "content": f"{n}!"}]}
    for n in range(6)
]
PAIRS = [{"source": f"lamp {n}", "target": f"Lampe {n}"} for n in range(6)]


@pytest.fixture
async def sdk(services: Services) -> AsyncIterator[Sdk]:
    async with openai_sdk(services) as clients:
        yield clients


async def upload(sdk: Sdk, rows: Any = CHATS) -> str:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return (await sdk.asynchronous.files.create(file=("rows.jsonl", content), purpose="fine-tune")).id


async def create(sdk: Sdk, **fields: Any) -> FineTuningJob:
    fields = {"model": "base", "training_file": None, **fields}
    fields["training_file"] = fields["training_file"] or await upload(sdk)
    return await sdk.asynchronous.fine_tuning.jobs.create(**fields)


def publish_as(services: Services, folder: Path, name: str, job: JobRecord, *, step: int | None = None) -> str:
    source = folder / f"{name}-{step}"
    source.mkdir()
    for file, content in adapter_files(note=step or 0).items():
        (source / file).write_bytes(content)
    lineage = Lineage(
        task=job.task, method="lora", base_model="tiny", base_fingerprint=FINGERPRINT, rank=8, job=job.id, step=step
    )
    figures = {"train_tokens": 321} if step is None else None
    return services.registry.publish(
        name, source, lineage, job_id=job.id if step is None else None, job_update=figures
    ).ref


def work(services: Services, folder: Path) -> JobRecord:
    """What the runner makes of the job that waits: two steps, a checkpoint after the first, and a version."""
    registry = services.registry
    job = registry.claim_job()
    assert job is not None
    for step, loss in ((1, 2.5), (2, 1.5)):
        progress = JobProgress(
            phase="training", step=step, total_steps=2, epoch=step / 2, loss=loss, eval_loss=loss + 1, eta_seconds=5
        )
        registry.update_job(job.id, progress=progress)
        registry.add_event(job.id, "metrics", progress.model_dump(mode="json"))
        if step == 1:
            ref = publish_as(services, folder, f"{job.adapter}-checkpoints", job, step=1)
            registry.add_event(job.id, "checkpoint", {"step": 1, "loss": loss, "eval_loss": loss + 1, "version": ref})
    registry.update_job(job.id, state=JobState.evaluating)
    publish_as(services, folder, job.adapter, job)
    keep_figures(registry, job)
    return registry.job(job.id)


async def test_from_a_file_to_a_model_to_call(sdk: Sdk, services: Services, tmp_path: Path) -> None:
    jobs = sdk.asynchronous.fine_tuning.jobs
    training, validation = await upload(sdk), await upload(sdk, CHATS[:2])
    job = await jobs.create(
        model="base",
        training_file=training,
        validation_file=validation,
        suffix="counter",
        seed=7,
        metadata={"team": "a"},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 0.5}},
        },
        extra_body={"options": {"r": 4}},
    )
    assert (job.object, job.status, job.fine_tuned_model, job.seed) == ("fine_tuning.job", "queued", None, 7)
    assert (job.training_file, job.validation_file, job.metadata) == (training, validation, {"team": "a"})
    assert job.method is not None
    assert job.method.supervised is not None
    assert job.method.supervised.hyperparameters is not None
    assert job.method.supervised.hyperparameters.to_dict() == job.hyperparameters.to_dict()
    assert job.hyperparameters.to_dict() == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 0.5}
    assert job.model_extra is not None
    options = job.model_extra["options"]
    # The chat task learns with 5e-4 if nobody says otherwise.
    assert (options["learning_rate"], options["r"], job.model_extra["task"]) == (2.5e-4, 4, "chat")
    assert services.registry.dataset(options["validation_dataset"]).rows == 2
    # What a job learns from is its own.
    await sdk.asynchronous.files.delete(training)

    ours = await asyncio.to_thread(work, services, tmp_path)
    done = await jobs.retrieve(job.id)
    assert job.id == f"ftjob-{ours.id}"
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", "counter@1", 321)
    assert done.finished_at is not None
    assert done.error is None
    [figures] = done.result_files
    assert (await sdk.asynchronous.files.retrieve(figures)).purpose == "fine-tune-results"
    assert (await sdk.asynchronous.files.content(figures)).text.splitlines() == [
        "step,train_loss,valid_loss",
        "1,2.5,3.5",
        "2,1.5,2.5",
    ]
    checkpoints = [each async for each in jobs.checkpoints.list(job.id, limit=1)]
    assert [(each.step_number, each.fine_tuned_model_checkpoint) for each in checkpoints] == [
        (2, "counter@1"),
        (1, "counter-checkpoints@1"),
    ]
    assert (checkpoints[1].metrics.train_loss, checkpoints[1].metrics.valid_loss) == (2.5, 3.5)
    for model in (done.fine_tuned_model, "counter", checkpoints[1].fine_tuned_model_checkpoint):
        assert model is not None
        answer = await sdk.asynchronous.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Count"}]
        )
        assert answer.model == (model if "@" in model else "counter@1")


async def test_events_are_paged_and_streamed(sdk: Sdk, services: Services, tmp_path: Path) -> None:
    jobs = sdk.asynchronous.fine_tuning.jobs
    job = await create(sdk, suffix="counter")
    following = asyncio.create_task(_follow(sdk, job.id))
    await asyncio.to_thread(work, services, tmp_path)
    newest_first = [event async for event in jobs.list_events(job.id, limit=2)]
    assert [event.message for event in newest_first] == [
        "Job succeeded; the model is counter@1",
        "Training is over; the result is measured now",
        "Step 2/2, training loss 1.5000, validation loss 2.5000",
        "Checkpoint at step 1; it is the model counter-checkpoints@1",
        "Step 1/2, training loss 2.5000, validation loss 3.5000",
        "Training started",
        "Job queued",
    ]
    figures = newest_first[2]
    assert (figures.type, figures.level) == ("metrics", "info")
    assert figures.data == {"step": 2, "total_steps": 2, "epoch": 1.0, "train_loss": 1.5, "valid_loss": 2.5}
    blocking = await asyncio.to_thread(lambda: list(sdk.blocking.fine_tuning.jobs.list_events(job.id, limit=3)))
    assert blocking == newest_first
    # Begun before the job was, it has told each event and its end.
    assert await following == [event.id for event in reversed(newest_first)]
    for unknown in ("ftevent-none", f"{newest_first[0].id}{'0' * 20}"):
        with pytest.raises(openai.BadRequestError, match=f"no event '{unknown}'"):
            await jobs.list_events(job.id, after=unknown)


async def _follow(sdk: Sdk, job_id: str) -> list[str]:
    ids = []
    stream = sdk.asynchronous.fine_tuning.jobs.with_streaming_response.list_events(
        job_id, extra_query={"stream": "true"}
    )
    async with stream as response:
        async for line in response.iter_lines():
            if line == "data: [DONE]":
                return ids
            if line.startswith("data: "):
                ids.append(json.loads(line.removeprefix("data: "))["id"])
    raise AssertionError("the stream has no end")


async def test_jobs_are_listed_and_filtered_by_their_metadata(sdk: Sdk) -> None:
    file = await upload(sdk)
    ids = [(await create(sdk, training_file=file, metadata={"run": str(n % 2)})).id for n in range(5)]
    jobs = sdk.asynchronous.fine_tuning.jobs
    assert [job.id async for job in jobs.list(limit=2)] == ids[::-1]
    assert [job.id async for job in jobs.list(limit=1, metadata={"run": "0"})] == [ids[4], ids[2], ids[0]]
    assert (await jobs.list(metadata={"other": '"'})).data == []


async def test_a_job_is_paused_resumed_and_cancelled(sdk: Sdk, services: Services) -> None:
    jobs = sdk.asynchronous.fine_tuning.jobs
    job = await create(sdk)
    ours = services.registry.claim_job()
    assert ours is not None
    assert (await jobs.pause(job.id)).status == "running", "until its worker has written the checkpoint"
    services.registry.update_job(ours.id, state=JobState.cancelled)
    paused = await jobs.retrieve(job.id)
    assert (paused.status, paused.finished_at) == ("paused", None)
    with pytest.raises(openai.BadRequestError, match="stopped already"):
        await jobs.pause(job.id)
    assert (await jobs.resume(job.id)).status == "queued"
    assert [event.message async for event in jobs.list_events(job.id)][:2] == ["Job queued: resumed", "Job stopped"]
    await jobs.pause(job.id)
    assert (await jobs.cancel(job.id)).status == "cancelled"
    assert (await asyncio.to_thread(sdk.blocking.fine_tuning.jobs.retrieve, job.id)).status == "cancelled"


async def test_the_sdk_tries_again_while_the_engine_starts(sdk: Sdk, services: Services) -> None:
    file = await upload(sdk)
    engine = engine_of(services)
    engine.state = "starting"
    with pytest.raises(openai.InternalServerError, match="the engine is starting") as refused:
        await create(sdk, training_file=file)
    assert (refused.value.status_code, refused.value.code) == (503, "not_ready")
    patient = sdk.asynchronous.with_options(max_retries=2)
    creating = asyncio.create_task(patient.fine_tuning.jobs.create(model="base", training_file=file))
    await asyncio.sleep(0.3)
    engine.state = "ready"
    assert (await creating).status == "queued"


async def test_a_failed_job_says_why(sdk: Sdk, services: Services) -> None:
    job = await create(sdk)
    ours = services.registry.claim_job()
    assert ours is not None
    services.registry.update_job(ours.id, state=JobState.failed, error="out of memory")
    failed = await sdk.asynchronous.fine_tuning.jobs.retrieve(job.id)
    assert failed.error is not None
    assert (failed.status, failed.error.message) == ("failed", "out of memory")
    events = [event async for event in sdk.asynchronous.fine_tuning.jobs.list_events(job.id)]
    assert (events[0].level, events[0].message) == ("error", "Job failed: out of memory")
    with pytest.raises(openai.BadRequestError, match="can't be cancelled"):
        await sdk.asynchronous.fine_tuning.jobs.cancel(job.id)


async def test_another_task_and_method_as_extra_fields(sdk: Sdk, services: Services) -> None:
    job = await create(
        sdk,
        training_file=await upload(sdk, PAIRS),
        suffix="de",
        extra_body={"task": "translation", "method": "rslora"},
    )
    ours = services.registry.job(job.id.removeprefix("ftjob-"))
    assert (ours.task, ours.method, ours.adapter) == ("translation", "rslora", "de")


@pytest.mark.parametrize(
    ("fields", "told", "param"),
    [
        ({"model": "gpt-4o-mini"}, "no adapter 'gpt-4o-mini'", None),
        ({"suffix": "Über"}, "can't name an adapter", "suffix"),
        ({"hyperparameters": {"n_epochs": 0}}, "greater than or equal to 1", "hyperparameters.n_epochs"),
        ({"method": {"type": "dpo"}}, "'supervised'", "method"),
        ({"extra_body": {"method": "lorra"}}, "did you mean 'lora'", None),
        ({"extra_body": {"task": "chess"}}, "unknown task 'chess'", None),
        ({"extra_body": {"options": {"rank": 4}}}, "unknown option 'rank'", "options.rank"),
        ({"extra_body": {"color": "red"}}, "color", "color"),
        ({"extra_body": {"task": "translation"}}, "rows.jsonl:1", "training_file"),
        ({"training_file": "file-none"}, "no file 'file-none'", None),
        ({"validation_file": "file-none"}, "no file 'file-none'", None),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "at most 0 items", "integrations"),
    ],
)
async def test_what_could_only_fail_later_is_refused(
    sdk: Sdk, services: Services, fields: dict[str, Any], told: str, param: str | None
) -> None:
    with pytest.raises(openai.APIStatusError, match=told) as refused:
        await create(sdk, **fields)
    assert refused.value.status_code in (400, 404)
    if param is not None:
        assert str(refused.value.param).startswith(param)
    assert services.registry.jobs() == []


async def test_a_file_for_batches_is_no_training_file(sdk: Sdk) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "base", "prompt": "x"}}
    file = await sdk.asynchronous.files.create(file=("b.jsonl", json.dumps(line).encode()), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="was uploaded for 'batch'") as refused:
        await create(sdk, training_file=file.id)
    assert refused.value.param == "training_file"


async def test_a_key_for_one_adapter_trains_it_without_checkpoints_to_call(services: Services) -> None:
    services.registry.create_key("root", ["admin"])
    key = services.registry.create_key("narrow", ["query", "train"], adapters=["counter"])[1]
    services.keyring.changed()
    async with openai_sdk(services, api_key=key) as sdk:
        job = await create(sdk, suffix="counter")
        assert job.model_extra is not None
        assert job.model_extra["options"]["publish_checkpoints"] is False
        with pytest.raises(openai.BadRequestError, match="no name that your key may use"):
            await create(sdk, suffix="other")


async def test_a_stream_of_events_says_why_it_ends(services: Services) -> None:
    services.registry.create_key("root", ["admin"])
    record, key = services.registry.create_key("a", ["query", "train"])
    services.keyring.changed()
    async with openai_sdk(services, api_key=key) as sdk:
        job = await create(sdk)
        stream = sdk.asynchronous.fine_tuning.jobs.with_streaming_response.list_events(
            job.id, extra_query={"stream": "true"}
        )
        async with stream as response:
            lines = [line async for line in _revoking(response.iter_lines(), services, record.id)]
    assert "Job queued" in lines[0]
    assert f"key {record.id} was revoked" in lines[-1]


async def _revoking(lines: AsyncIterator[str], services: Services, key: str) -> AsyncIterator[str]:
    """The lines with something in them; the key ends after the first."""
    async for line in lines:
        if line:
            yield line
            services.registry.revoke_key(key)


async def test_a_key_lists_those_jobs_of_its_tenant_whose_adapters_it_sees(services: Services) -> None:
    services.registry.create_key("root", ["admin"])
    wide, narrow = (
        services.registry.create_key(name, ["query", "train"], tenant="acme", adapters=adapters)[1]
        for name, adapters in (("wide", ["shared-*"]), ("narrow", []))
    )
    services.keyring.changed()
    async with openai_sdk(services, api_key=wide) as sdk, openai_sdk(services, api_key=narrow) as other:
        seen = [(await create(other)).id]
        await create(sdk, suffix="shared-x")
        seen.append((await create(other)).id)
        assert len([job async for job in sdk.asynchronous.fine_tuning.jobs.list(limit=1)]) == 3
        listed = [job.id async for job in other.asynchronous.fine_tuning.jobs.list(limit=1)]
        assert listed == seen[::-1]


async def test_a_tenants_jobs_are_its_own_and_its_adapters_have_its_name(services: Services, tmp_path: Path) -> None:
    scopes = ["query", "train"]
    services.registry.create_key("root", ["admin"])
    acme = services.registry.create_key("a", scopes, tenant="acme")[1]
    other = services.registry.create_key("b", scopes, tenant="other")[1]
    services.keyring.changed()
    async with openai_sdk(services, api_key=acme) as first, openai_sdk(services, api_key=other) as second:
        job = await create(first, suffix="counter")
        assert services.registry.job(job.id.removeprefix("ftjob-")).adapter == "acme.counter"
        assert [each.id async for each in first.asynchronous.fine_tuning.jobs.list()] == [job.id]
        await asyncio.to_thread(work, services, tmp_path)
        [figures] = (await first.asynchronous.fine_tuning.jobs.retrieve(job.id)).result_files
        assert (await first.asynchronous.files.content(figures)).text.startswith("step,")
        with pytest.raises(openai.NotFoundError, match="no file"):
            await second.asynchronous.files.content(figures)
        jobs = second.asynchronous.fine_tuning.jobs
        assert (await jobs.list()).data == []
        for touch in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
            with pytest.raises(openai.NotFoundError, match="no job"):
                await touch(job.id)
        with pytest.raises(openai.NotFoundError, match="no file"):
            await create(second, training_file=job.training_file)
