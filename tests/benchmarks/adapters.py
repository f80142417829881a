"""Random adapters for the benchmarks, as folders and registered in a data folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path

from graft_server.base_model import BaseModel
from graft_server.bench.random_adapters import RandomLora
from graft_server.engine.base import AdapterSource
from graft_server.registry import Lineage, Registry

RANK = 16
#: What files an adapter has makes no difference to its cost; the engine tells adapters apart by their ids.
_DISTINCT = 4


def write_adapters(base: BaseModel, folder: Path, count: int = _DISTINCT) -> list[Path]:
    """Folders of LoRA adapters of rank 16 on all linear layers."""
    maker = RandomLora(base, rank=RANK)
    folders = [folder / str(seed) for seed in range(count)]
    for seed, target in enumerate(folders):
        maker.write(target, seed=seed)
    return folders


def lineage(base: BaseModel, task: str = "chat") -> Lineage:
    return Lineage(task=task, method="lora", base_model=base.name, base_fingerprint=base.fingerprint, rank=RANK)


def register(base: BaseModel, data_dir: Path, folders: Iterable[Path], count: int) -> list[str]:
    """Registers so many adapters in a data folder that no server uses yet, and returns their names."""
    names = [f"a{number}" for number in range(count)]
    registry = Registry.open(data_dir)
    try:
        for name, folder in zip(names, cycle(folders), strict=False):
            registry.publish(name, folder, lineage(base))
    finally:
        registry.close()
    return names


def sources(folders: Sequence[Path], ids: Iterable[int]) -> list[AdapterSource]:
    """Adapters with these ids for an engine without a registry."""
    return [
        AdapterSource(f"a{id_}@1", id_, str(folder), "lora", RANK)
        for id_, folder in zip(ids, cycle(folders), strict=False)
    ]
