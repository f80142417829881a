"""The figures of a run, as one document."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from pydantic import Field

from graft_client.bench.records import Measurements, Record
from graft_client.bench.settings import BenchSettings
from graft_client.bench.statistics import Distribution
from graft_client.schemas.common import Schema

#: The kind of failure of a request that the server refused because it was full (HTTP 429).
REJECTED = "429"


class FailureCount(Schema):
    """How many requests failed in one way (see ``records.Failure``), and what one of them was told."""

    count: int
    example: str


class Goodput(Schema):
    """Requests that were answered within every target (Zhong et al., "DistServe", OSDI 2024): how many, which share
    of all that ended, failures included, and how many a second."""

    requests: int
    share: float
    requests_per_second: float


class ModelFigures(Schema):
    """One adapter's part of a run."""

    requests: int
    failed: int
    output_tokens: int
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None


class BenchResult(Schema):
    """A run and its figures. Times and tokens are of the requests that were answered whole.

    The four distributions are of: time to first token (TTFT), one value a request; time per output token (TPOT),
    ``(latency - TTFT) / (output tokens - 1)``, one a request; inter-token latency (ITL), one a gap between two pieces
    of text; and end-to-end latency (E2E), one a request.
    """

    settings: BenchSettings
    ended_at: datetime
    interrupted: bool = Field(description="Whether it was stopped; requests that were in flight then are left out.")
    seconds: float = Field(description="From the first request to the end of the last answer.")
    sent: int
    answered: int
    failed: int
    rejected: int = Field(description="The failed requests that the server answered 429.")
    failures: dict[str, FailureCount]
    prompt_tokens: int
    output_tokens: int
    uncounted: int = Field(description="Answers without the server's own token numbers; see `Record.counted`.")
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float = Field(description="Prompt and output tokens.")
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    itl_ms: Distribution | None
    e2e_ms: Distribution | None
    goodput: Goodput | None = Field(description="Where a target was set.")
    lag_ms: Distribution | None = Field(description="How late the load generator itself was; see `Measurements`.")
    models: dict[str, ModelFigures] = Field(description="By the model's name, in the order of their popularity.")


def summarise(settings: BenchSettings, measurements: Measurements, *, interrupted: bool) -> BenchResult:
    """The figures of what was measured."""
    answered = measurements.answered
    output_tokens = sum(record.output_tokens for record in answered)
    prompt_tokens = sum(record.prompt_tokens for record in answered)
    failures = _failures(measurements.records)
    rejected = failures.get(REJECTED)
    return BenchResult(
        settings=settings,
        ended_at=datetime.now(UTC),
        interrupted=interrupted,
        seconds=measurements.seconds,
        sent=measurements.sent,
        answered=len(answered),
        failed=len(measurements.records) - len(answered),
        rejected=rejected.count if rejected else 0,
        failures=failures,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        uncounted=sum(not record.counted for record in answered),
        requests_per_second=_rate(len(answered), measurements),
        output_tokens_per_second=_rate(output_tokens, measurements),
        total_tokens_per_second=_rate(prompt_tokens + output_tokens, measurements),
        ttft_ms=Distribution.of(record.ttft for record in answered),
        tpot_ms=Distribution.of(record.tpot for record in answered if record.tpot is not None),
        itl_ms=Distribution.of(gap for record in answered for gap in record.gaps),
        e2e_ms=Distribution.of(record.latency for record in answered),
        goodput=_goodput(settings, measurements),
        lag_ms=Distribution.of(measurements.lags),
        models=_by_model(settings.models, measurements.records),
    )


def _rate(count: int, measurements: Measurements) -> float:
    return count / measurements.seconds if measurements.seconds else 0.0


def _failures(records: Iterable[Record]) -> dict[str, FailureCount]:
    """The most frequent kind first."""
    found: dict[str, FailureCount] = {}
    for record in records:
        if (failure := record.failure) is not None:
            found.setdefault(failure.kind, FailureCount(count=0, example=failure.message)).count += 1
    return dict(sorted(found.items(), key=lambda item: -item[1].count))


def _goodput(settings: BenchSettings, measurements: Measurements) -> Goodput | None:
    if (settings.ttft_target_ms, settings.tpot_target_ms) == (None, None):
        return None
    good = sum(_within(record, settings) for record in measurements.answered)
    return Goodput(
        requests=good,
        share=good / len(measurements.records) if measurements.records else 0.0,
        requests_per_second=_rate(good, measurements),
    )


def _within(record: Record, settings: BenchSettings) -> bool:
    """Whether an answer kept the targets; one of a single token has no time per output token to miss one with."""
    measured = ((record.ttft, settings.ttft_target_ms), (record.tpot, settings.tpot_target_ms))
    return all(target is None or seconds is None or 1000 * seconds <= target for seconds, target in measured)


def _by_model(models: Sequence[str], records: Iterable[Record]) -> dict[str, ModelFigures]:
    grouped: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        grouped[record.model].append(record)
    figures = {}
    for model in models:
        answered = [record for record in grouped[model] if record.failure is None]
        ttft = Distribution.of(record.ttft for record in answered)
        figures[model] = ModelFigures(
            requests=len(grouped[model]),
            failed=len(grouped[model]) - len(answered),
            output_tokens=sum(record.output_tokens for record in answered),
            ttft_p50_ms=ttft.p50 if ttft else None,
            ttft_p99_ms=ttft.p99 if ttft else None,
        )
    return figures
