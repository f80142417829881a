"""Reading an adapter's files safely: a configuration and safetensors, nothing else, and checked against the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graft_plugins.method import AdapterFault, AdapterMethod, Graft
from graft_server.engine.base import AdapterLoadError, AdapterSource

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def read_grafts(
    source: AdapterSource, methods: Mapping[str, AdapterMethod], model: Any, *, max_rank: int
) -> list[Graft]:
    """An adapter's primitive operations, on the CPU.

    Raises:
        AdapterLoadError: with the file, the tensor or the field at fault.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(source.path)
    method = methods.get(source.method)
    if method is None:
        raise AdapterLoadError(f"{source.ref}: the adapter method {source.method!r} is not installed")
    reading = CONFIG
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        reading = WEIGHTS
        tensors = load_file(folder / WEIGHTS, device="cpu")
    except FileNotFoundError as error:
        raise AdapterLoadError(f"{source.ref}: {reading} is missing") from error
    except (ValueError, SafetensorError, OSError) as error:
        raise AdapterLoadError(f"{source.ref}: {reading} can't be read: {error}") from error
    if not isinstance(config, dict):
        raise AdapterLoadError(f"{source.ref}: {CONFIG} must hold a JSON object")
    try:
        rank = method.rank(config)
        if rank > max_rank:
            raise AdapterFault(f"{CONFIG}: rank {rank} is above the server's max_rank {max_rank}")
        return method.compile(config, tensors, model)
    except AdapterFault as error:
        raise AdapterLoadError(f"{source.ref}: {error}") from error
