"""What a model folder says about itself, read from its JSON and safetensors headers without torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_server.base_model.digests import remembered_sha256
from graft_server.base_model.errors import BaseModelError

#: Notes of the tool that wrote the configuration, which do not change what the model computes.
_VOLATILE = frozenset({"transformers_version", "_name_or_path", "_model_name_or_path"})
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length")
_CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_HEADER_LIMIT = 100 << 20


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model on disk. ``fingerprint`` is sha256 (hex) over its configuration and its weights' bytes;
    ``context_length`` is in tokens."""

    name: str
    path: Path
    fingerprint: str
    architecture: str
    context_length: int
    parameters: int


def read_folder(folder: Path, name: str, cache_dir: Path) -> BaseModel:
    """Describe the causal language model in ``folder``.

    Raises:
        BaseModelError: a file is missing or broken, or the model is none that generates text.
    """
    config = _read_config(folder)
    architecture = next(iter(config.get("architectures") or ()), "")
    if not architecture.endswith(_CAUSAL_SUFFIXES):
        raise BaseModelError(
            f"{folder / 'config.json'}: {architecture or 'a model without architectures'} is not a causal "
            "language model (…ForCausalLM), which is what a base model must be"
        )
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise BaseModelError(f"{folder}: no tokenizer beside the model (tokenizer.json is missing)")
    weights = _weight_files(folder)
    settled = {key: value for key, value in config.items() if key not in _VOLATILE}
    return BaseModel(
        name=name,
        path=folder,
        fingerprint=remembered_sha256(weights, json.dumps(settled, sort_keys=True).encode(), cache_dir),
        architecture=architecture,
        context_length=_context_length(folder, config),
        parameters=sum(_count_parameters(file) for file in weights),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseModelError(f"{folder}: no config.json, so this is not a model folder") from None
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path}: can't be read: {error}") from error
    if not isinstance(config, dict):
        raise BaseModelError(f"{path}: not a JSON object")
    return config


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise BaseModelError(f"{index}: not a safetensors index: {error}") from error
        files = [folder / str(name) for name in sorted(named)]
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            hint = ", and pickled weights are not loaded" if [*folder.glob("*.bin"), *folder.glob("*.pt*")] else ""
            raise BaseModelError(f"{folder}: no {file.name}{hint}")
    return files


def _context_length(folder: Path, config: dict[str, Any]) -> int:
    for key in _CONTEXT_KEYS:
        if isinstance(config.get(key), int):
            return int(config[key])
    raise BaseModelError(f"{folder / 'config.json'}: no context length ({_CONTEXT_KEYS[0]} is missing)")


def _count_parameters(file: Path) -> int:
    """Parameters in a safetensors file, whose header also says how long the file must be.

    The format: https://github.com/huggingface/safetensors#format
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(size, _HEADER_LIMIT):
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        end = max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
        if size != 8 + length + end:
            raise ValueError(f"it has {size} bytes where its header promises {8 + length + end}")
        return sum(math.prod(entry["shape"]) for entry in tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(f"{file}: not a whole safetensors file: {error}") from error
