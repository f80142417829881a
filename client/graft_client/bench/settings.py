"""Everything that a run depends on, in one object, which the result keeps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from graft_client.bench.popularity import Popularity
from graft_client.bench.workload import Length
from graft_client.schemas.common import Schema

EndpointName = Literal["completions", "chat"]


class BenchSettings(Schema):
    """A run. Either ``concurrency`` (closed loop) or ``rate`` (open loop) is set, and at least one of ``requests``
    and ``seconds``; whichever is reached first ends the sending."""

    url: str
    endpoint: EndpointName = "completions"
    models: list[str] = Field(min_length=1)
    concurrency: int | None = None
    rate: float | None = Field(None, description="Requests a second.")
    requests: int | None = None
    seconds: float | None = None
    warmup: int = Field(0, description="Requests before the run, which are not counted.")
    popularity: Popularity = "uniform"
    zipf_exponent: float = 1.0
    prompt_tokens: Length
    output_tokens: Length
    ignore_eos: bool = True
    temperature: float = 0.0
    seed: int = 0
    timeout: float = Field(600.0, description="Seconds that the server may stay silent.")
    ttft_target_ms: float | None = None
    tpot_target_ms: float | None = None
