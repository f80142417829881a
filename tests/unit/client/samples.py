"""Documents as a server sends them, for the little server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from graft_client.schemas.adapters import AdapterInfo, EvaluationSummary, VersionInfo
from graft_client.schemas.common import MetricReport, MetricValue, Timings, Usage
from graft_client.schemas.datasets import DatasetCheck, DatasetFile, DatasetInfo
from graft_client.schemas.jobs import JobEvent, JobInfo, JobProgress, JobState
from graft_client.schemas.predict import PredictEvent, PredictResponse
from graft_client.schemas.status import BaseModelStatus, EngineStatus, ServerStatus
from graft_client.schemas.tasks import (
    MethodInfo,
    OptionInfo,
    PluginFault,
    PluginInfo,
    PluginList,
    TaskInfo,
    TrainingInfo,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

TASK = TaskInfo(
    name="translation",
    title="Translation",
    description="One language to another.",
    plugin="built-in",
    formats=["jsonl", "po"],
    training_defaults={"epochs": 2},
    example_request={"source": "Hello"},
    example_schema={"properties": {"source": {}, "target": {}}, "required": ["source", "target"]},
    request_schema={"properties": {"source": {}, "context": {}}, "required": ["source"]},
    response_schema={"properties": {"translation": {}}, "required": ["translation"]},
)
TRAINING = TrainingInfo(
    options=[OptionInfo(name="epochs", type="float", default=1, description="Passes over the data.")],
    methods=[
        MethodInfo(
            name="lora",
            description="Low-rank adapters.",
            plugin="built-in",
            options=[OptionInfo(name="r", type="int", default=8, description="The rank.")],
        )
    ],
    formats=[],
)
DATASET = DatasetInfo(
    id="ds-1",
    task="translation",
    format="jsonl",
    rows=3,
    bad_rows=0,
    files=[DatasetFile(name="a.jsonl", size_bytes=20, sha256="0" * 64)],
    created_at=NOW,
)
CHECK = DatasetCheck(
    task="translation",
    format="jsonl",
    rows=3,
    bad_rows=0,
    errors=[],
    examples=[{"source": "Hello", "target": "Hallo"}],
    train_rows=2,
    test_rows=1,
)
STATUS = ServerStatus(
    version="0.1.0",
    ready=True,
    uptime_seconds=75.0,
    base_model=BaseModelStatus(name="smollm2", parameters=134_515_008, context_length=8192),
    engine=EngineStatus(name="torch", state="ready", device="cpu", dtype="bfloat16", slots=32),
    adapters=1,
    versions=3,
    tasks=["translation"],
    queued_requests=0,
    jobs={"succeeded": 3, "failed": 0},
)
PLUGINS = PluginList(
    plugins=[PluginInfo(name="translation", version="0.1.0", built_in=True, tasks=["translation"])],
    faults=[PluginFault(plugin="weather", hook="register_tasks", file="weather.py", line=7, error="no name")],
)


def report(**values: float) -> MetricReport:
    return MetricReport(
        primary=next(iter(values)), metrics={name: MetricValue(value=v) for name, v in values.items()}, rows=100
    )


SUMMARY = EvaluationSummary(
    adapter=report(chrf=30.5, bleu=11.25),
    base=report(chrf=17.5, bleu=1.5),
    baselines={"copy": report(chrf=31.0, bleu=0.5)},
)


def version(number: int = 3, **changes: Any) -> VersionInfo:
    fields: dict[str, Any] = {
        "adapter": "de-strings",
        "version": number,
        "ref": f"de-strings@{number}",
        "task": "translation",
        "method": "lora",
        "digest": "f" * 64,
        "size_bytes": 3_145_728,
        "created_at": NOW,
        "base_model": "smollm2",
        "base_fingerprint": "a" * 64,
        "train_rows": 900,
        "train_seconds": 100.0,
        "train_tokens": 31_000,
        "evaluation": SUMMARY,
    }
    return VersionInfo(**(fields | changes))


ADAPTER = AdapterInfo(
    name="de-strings", task="translation", latest=3, created_at=NOW, versions=[version(2), version(3)]
)


def job(state: JobState = JobState.succeeded, **changes: Any) -> JobInfo:
    fields: dict[str, Any] = {
        "id": "job-1",
        "state": state,
        "task": "translation",
        "adapter": "de-strings",
        "dataset": "ds-1",
        "method": "lora",
        "options": {"r": 16},
        "progress": JobProgress(phase="training", step=10, total_steps=10, loss=1.25),
        "version": "de-strings@3" if state is JobState.succeeded else None,
        "created_at": NOW,
    }
    return JobInfo(**(fields | changes))


def event(seq: int, kind: Any = "metrics", **data: Any) -> tuple[str, int, JobEvent]:
    return kind, seq, JobEvent(seq=seq, time=NOW, kind=kind, data=data)


def answer(text: str = "Hallo", **changes: Any) -> PredictResponse:
    fields: dict[str, Any] = {
        "id": "req-1",
        "adapter": "de-strings@3",
        "task": "translation",
        "output": {"translation": text},
        "text": text,
        "usage": Usage(prompt_tokens=12, completion_tokens=3),
        "timings": Timings(total=0.5),
    }
    return PredictResponse(**(fields | changes))


def delta(text: str) -> tuple[str, None, PredictEvent]:
    return "delta", None, PredictEvent(event="delta", delta=text)


def result(response: PredictResponse) -> tuple[str, None, PredictEvent]:
    return "result", None, PredictEvent(event="result", result=response)
