"""Checkpoints: everything a run needs to go on as if nothing had happened, without a pickle.

A checkpoint is a folder ``step-00000050`` with the adapter's own two files (fp32 masters), the optimiser's
tensors and random-number states in ``trainer.safetensors``, and the rest in ``trainer.json``. The data position is
the step's number (see ``batches``) and so is the scheduler's.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from graft_server.training.spec import CHECKPOINT_NAME
from graft_server.whole_files import whole_folder

_STATE = "trainer.json"
_TENSORS = "trainer.safetensors"
_FOLDER = re.compile(r"step-(\d{8})")
_KEEP = 2


@dataclass(slots=True)
class RunState:
    """Where a run stands: steps and tokens done, wall-clock seconds spent, and what early stopping remembers."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None
    eval_loss: float | None = None
    best_eval_loss: float | None = None
    looks_without_better: int = 0
    stopped_early: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read. ``best`` holds the flat masters with the best validation loss, if kept."""

    folder: Path
    state: RunState
    optimizer: dict[str, Any]
    rng: dict[str, torch.Tensor]
    best: list[torch.Tensor]


def write_checkpoint(
    parent: Path,
    state: RunState,
    optimizer: torch.optim.Optimizer,
    best: list[torch.Tensor],
    save_adapter: Callable[[str], None],
) -> Path:
    """Write a checkpoint and delete all but the last two.

    Raises:
        OSError: the disk is full; the older checkpoints are untouched.
    """
    target = parent / CHECKPOINT_NAME.format(state.step)
    if not target.exists():
        with whole_folder(target) as staging:
            save_adapter(str(staging))
            tensors, plain = _split_optimizer(optimizer.state_dict())
            tensors |= {f"rng.{name}": value for name, value in _rng_states().items()}
            tensors |= {f"best.{index}": value.detach().cpu() for index, value in enumerate(best)}
            save_file(tensors, staging / _TENSORS)
            document = {"state": asdict(state), "optimizer": plain}
            (staging / _STATE).write_text(json.dumps(document), encoding="utf-8")
    for old in _folders(parent)[:-_KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def read_checkpoint(parent: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read, or ``None``."""
    for folder in reversed(_folders(parent)):
        try:
            document = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            tensors = load_file(folder / _TENSORS)
            return Checkpoint(
                folder=folder,
                state=RunState(**document["state"]),
                optimizer=_join_optimizer(tensors, document["optimizer"]),
                rng={name[4:]: value for name, value in tensors.items() if name.startswith("rng.")},
                best=[tensors[f"best.{index}"] for index in range(sum(n.startswith("best.") for n in tensors))],
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            continue
    return None


def restore_rng(states: dict[str, torch.Tensor]) -> None:
    """Put the random-number generators back to where they were."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _rng_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _folders(parent: Path) -> list[Path]:
    """The whole checkpoints in ``parent``, the oldest first."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if _FOLDER.fullmatch(path.name))


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimiser's ``state_dict`` as tensors by name and a JSON object."""
    tensors = {
        f"optimizer.{index}.{name}": value.detach().cpu()
        for index, values in state["state"].items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }
    plain = {
        str(index): {name: value for name, value in values.items() if not isinstance(value, torch.Tensor)}
        for index, values in state["state"].items()
    }
    return tensors, {"state": plain, "param_groups": state["param_groups"]}


def _join_optimizer(tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in plain["state"].items()}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, field = name.split(".", 2)
            state[int(index)][field] = value
    return {"state": state, "param_groups": plain["param_groups"]}
