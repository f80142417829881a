"""Random adapters of every method, and the reference answers of the model they were attached to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graft_plugins.manager import PluginHost
from graft_plugins.method import AdapterMethod
from graft_server.base_model import BaseModel
from graft_server.engine.base import AdapterSource
from graft_server.plugins import server_plugins


def methods() -> dict[str, AdapterMethod]:
    return PluginHost.load("", extra=server_plugins(), entry_points=False).methods


def random_adapter(
    base: BaseModel, method: str, folder: Path, *, seed: int, engine_id: int, **options: Any
) -> tuple[AdapterSource, Any]:
    """Attach a method to the base model in fp32, give its parameters random values, save it. Returns where it lies
    and the attached model, the reference."""
    import torch

    from graft_server.base_model.loading import load_model

    implementation = methods()[method]
    model = implementation.attach(
        load_model(base, dtype="float32", device="cpu"), implementation.options_model(**options), seed=seed
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                # A magnitude of DoRA stays near its start; everything else moves far enough to change every answer.
                parameter.copy_(parameter * (1 + 0.2 * noise) if "magnitude" in name else noise * 0.1)
    folder.mkdir(parents=True)
    implementation.save(model, str(folder))
    rank = int(options.get("r", 8))
    return AdapterSource(f"{method}-{seed}@1", engine_id, str(folder), method, rank), model


def greedy(model: Any, tokens: list[int], count: int, stop: frozenset[int] = frozenset()) -> list[int]:
    """The reference: the whole sequence through the plain model for every token, no cache, no batch."""
    import torch

    result: list[int] = []
    with torch.inference_mode():
        for _ in range(count):
            logits = model(input_ids=torch.tensor([tokens + result]), use_cache=False).logits[0, -1]
            token = int(logits.argmax())
            if token in stop:
                break
            result.append(token)
    return result
