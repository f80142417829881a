"""What the server and the engine's process say to each other: msgpack frames over a socket pair.

A frame is its length, four bytes big-endian, and a msgpack-encoded message. ``id`` ties an answer to its request.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from graft_server.engine.base import (
    AdapterSource,
    Capabilities,
    Delta,
    Embeddings,
    EngineStats,
    GenerateRequest,
    ModelInfo,
    ScoreRequest,
    ScoreResult,
)


class EngineConfig(msgspec.Struct, frozen=True):
    """What an engine needs to start. ``plugins`` restricts third-party plugins, as in the settings."""

    engine: str
    base_model: str
    cache_dir: str
    device: str = "auto"
    dtype: str = "auto"
    max_slots: int = 32
    max_rank: int = 64
    max_batch_tokens: int = 2048
    max_sequences: int = 256
    kv_cache_mib: int = 1024
    cuda_graphs: bool = True
    host_cache_mib: int = 1024
    memory: float | None = None
    sleeps: bool = False
    plugins: str = "*"


# To the engine


class Start(msgspec.Struct, frozen=True, tag=True):
    config: EngineConfig


class Generate(msgspec.Struct, frozen=True, tag=True):
    request: GenerateRequest


class ScoreCandidates(msgspec.Struct, frozen=True, tag=True):
    request: ScoreRequest


class Abort(msgspec.Struct, frozen=True, tag=True):
    id: str


class Embed(msgspec.Struct, frozen=True, tag=True):
    id: str
    texts: tuple[str, ...]


class Validate(msgspec.Struct, frozen=True, tag=True):
    id: str
    source: AdapterSource


class Load(msgspec.Struct, frozen=True, tag=True):
    id: str
    source: AdapterSource


class Prefetch(msgspec.Struct, frozen=True, tag=True):
    source: AdapterSource


class Pin(msgspec.Struct, frozen=True, tag=True):
    id: str
    source: AdapterSource


class Unpin(msgspec.Struct, frozen=True, tag=True):
    engine_id: int


class Unload(msgspec.Struct, frozen=True, tag=True):
    engine_id: int


class Sleep(msgspec.Struct, frozen=True, tag=True):
    id: str


class Wake(msgspec.Struct, frozen=True, tag=True):
    id: str


class AskStats(msgspec.Struct, frozen=True, tag=True):
    id: str


ToEngine = (
    Start
    | Generate
    | ScoreCandidates
    | Abort
    | Embed
    | Validate
    | Load
    | Prefetch
    | Pin
    | Unpin
    | Unload
    | Sleep
    | Wake
    | AskStats
)

# From the engine


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Start-up goes on; ``fraction`` is from 0 to 1 where it is known."""

    message: str
    fraction: float | None = None


class Ready(msgspec.Struct, frozen=True, tag=True):
    model: ModelInfo
    capabilities: Capabilities


class StartFailed(msgspec.Struct, frozen=True, tag=True):
    message: str


class Deltas(msgspec.Struct, frozen=True, tag=True):
    """Everything one step gave to its callers."""

    items: list[tuple[str, Delta]]


class CandidatesScored(msgspec.Struct, frozen=True, tag=True):
    id: str
    result: ScoreResult


class Embedded(msgspec.Struct, frozen=True, tag=True):
    id: str
    result: Embeddings


class Done(msgspec.Struct, frozen=True, tag=True):
    id: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    id: str
    code: str
    message: str


class Stats(msgspec.Struct, frozen=True, tag=True):
    id: str
    stats: EngineStats


FromEngine = Progress | Ready | StartFailed | Deltas | CandidatesScored | Embedded | Done | Failed | Stats

HEADER = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()
to_engine_decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
from_engine_decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def frame(message: Any) -> bytes:
    """A message as it goes over the socket."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body
