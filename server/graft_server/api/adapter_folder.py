"""What an uploaded adapter folder says about itself, checked before the engine reads its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from graft_plugins.method import AdapterFault, AdapterMethod
from graft_plugins.task import AnyTask
from graft_server.problems import ProblemError
from graft_server.routing.auto.profiles import PROFILE_FILE, Profile
from graft_server.routing.states import STATE_FILE
from graft_server.training.methods import detect_method

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
LINEAGE_FILE = "graft.json"

_ALLOWED = frozenset({CONFIG_FILE, WEIGHTS_FILE, STATE_FILE, LINEAGE_FILE, PROFILE_FILE, "README.md"})
_PICKLED = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})


@dataclass(frozen=True, slots=True)
class FoundAdapter:
    """The method and the largest rank of an adapter folder."""

    method: str
    rank: int


def check_file_name(name: str) -> None:
    """Raises ``ProblemError`` unless a file of this name belongs into an adapter folder."""
    if PurePosixPath(name).suffix in _PICKLED:
        raise ProblemError(
            "invalid-adapter",
            f"{name}: pickled weights can run code when they are loaded; save them as {WEIGHTS_FILE}",
        )
    if name not in _ALLOWED:
        raise ProblemError(
            "invalid-adapter", f"{name}: an adapter folder has {', '.join(sorted(_ALLOWED))} and nothing else"
        )


def read_adapter_folder(
    folder: Path, task: AnyTask, methods: Mapping[str, AdapterMethod], base_fingerprint: str
) -> FoundAdapter:
    """Check everything but the weights. Blocking.

    Raises:
        ProblemError: a missing or broken file, another base model, or a state that is not the task's.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).exists():
            raise ProblemError("invalid-adapter", f"{name} is missing")
    _check_base(folder, base_fingerprint)
    _check_state(folder, task)
    _check_profile(folder)
    config = _read_object(folder / CONFIG_FILE)
    try:
        method = detect_method(config)
        rank = methods[method].rank(config) if method in methods else 0
    except AdapterFault as error:
        raise ProblemError("invalid-adapter", str(error)) from error
    except (TypeError, ValueError) as error:
        raise ProblemError("invalid-adapter", f"{CONFIG_FILE}: {error}") from error
    return FoundAdapter(method, rank)


def _check_base(folder: Path, base_fingerprint: str) -> None:
    if not (folder / LINEAGE_FILE).exists():
        return
    lineage = _read_object(folder / LINEAGE_FILE)
    trained_on = lineage.get("base_fingerprint")
    if trained_on is not None and trained_on != base_fingerprint:
        name = lineage.get("base_model", "another base model")
        raise ProblemError(
            "invalid-adapter",
            f"{LINEAGE_FILE}: the adapter was trained on {name} (base_fingerprint {str(trained_on)[:12]}), "
            f"this server runs another base model ({base_fingerprint[:12]})",
        )


def _check_state(folder: Path, task: AnyTask) -> None:
    file = folder / STATE_FILE
    try:
        if file.exists():
            task.state_model.model_validate_json(file.read_bytes())
        else:
            task.state_model()
    except ValidationError as error:
        if not file.exists():
            detail = f"{STATE_FILE} is missing, and task {task.name!r} needs it"
        else:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            detail = f"{STATE_FILE}:{place}: no state of task {task.name!r}: {first['msg']}"
        raise ProblemError("invalid-adapter", detail) from error


def _check_profile(folder: Path) -> None:
    if (folder / PROFILE_FILE).exists():
        try:
            Profile.load(folder / PROFILE_FILE)
        except ValueError as error:
            raise ProblemError("invalid-adapter", str(error)) from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ProblemError("invalid-adapter", f"{path.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ProblemError("invalid-adapter", f"{path.name} must hold a JSON object")
    return content
