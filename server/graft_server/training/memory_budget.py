"""Whether the engine and the training jobs fit on one device together, from what the settings give to each."""

from __future__ import annotations

from graft_client.errors import UsageError
from graft_server.config import Settings


def check_memory_budget(settings: Settings) -> None:
    """
    Raises:
        UsageError: together they may take more than the device has.
    """
    if not _share_a_device(settings.device, settings.training_device):
        return
    engine = 0.0 if settings.sleep_while_training else settings.engine_memory or 0.0
    jobs = settings.max_jobs * (settings.training_memory or 0.0)
    # Shares are typed by people: 0.6 and 0.4 are 1.
    if engine + jobs > 1 + 1e-9:
        parts = [f"engine_memory = {engine:g}"] if engine else []
        parts.append(f"max_jobs = {settings.max_jobs} with training_memory = {settings.training_memory:g} each")
        hint = "or give jobs a training_device of their own"
        raise UsageError(f"{' and '.join(parts)} are {engine + jobs:g} of one device; lower them to 1 or less, {hint}")


def _share_a_device(serving: str, training: str) -> bool:
    """``auto`` and ``cuda`` are the first CUDA device; what ``auto`` finds is the same for both."""
    first = {"auto": "cuda:0", "cuda": "cuda:0"}
    return first.get(serving, serving) == first.get(training, training)
