"""Requests to a server under test, with the load generator of ``graft bench``.

It runs beside the server, on the same cores: what it costs is part of what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graft_client.bench.records import Measurements
from graft_client.bench.run import run
from graft_client.bench.settings import BenchSettings
from graft_client.bench.workload import Length


def settings_of(url: str, models: Sequence[str], *, prompt: int, output: int, **others: Any) -> BenchSettings:
    """Prompts and answers of exactly so many words and tokens."""
    return BenchSettings(
        url=url,
        models=list(models),
        prompt_tokens=Length(prompt, prompt),
        output_tokens=Length(output, output),
        **others,
    )


async def measure(settings: BenchSettings) -> Measurements:
    """A run in which every request is answered.

    Raises:
        RuntimeError: see ``checked``.
    """
    measurements = Measurements()
    await run(settings, measurements, api_key=None, tell=lambda _: None)
    return checked(measurements)


def checked(measurements: Measurements) -> Measurements:
    """The measurements, if every request was answered.

    Raises:
        RuntimeError: some were not; it has the reason of one.
    """
    failures = [record.failure for record in measurements.records if record.failure is not None]
    if failures:
        raise RuntimeError(f"{len(failures)} requests failed, one of them with {failures[0]}")
    return measurements
