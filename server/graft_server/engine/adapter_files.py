"""Reading an adapter's files safely: a configuration and safetensors, nothing else, and checked against the model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from graft_plugins.method import AdapterFault, AdapterMethod, Graft
from graft_server.engine.base import AdapterLoadError, AdapterSource

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


#: Bytes read in one go.
_CHUNK = 1 << 20


def fetch_files(source: AdapterSource) -> None:
    """Have an adapter's files in the operating system's cache, so that reading them waits for no disk. What can't be
    read is left for ``read_grafts`` to explain."""
    buffer = memoryview(bytearray(_CHUNK))
    for name in (CONFIG, WEIGHTS):
        with contextlib.suppress(OSError), (Path(source.path) / name).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def read_grafts(
    source: AdapterSource, methods: Mapping[str, AdapterMethod], model: Any, *, max_rank: int
) -> Iterator[Graft]:
    """An adapter's primitive operations, on the CPU, each read and checked as it is asked for.

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
        yield from method.compile(config, tensors, model)
    except AdapterFault as error:
        raise AdapterLoadError(f"{source.ref}: {error}") from error
