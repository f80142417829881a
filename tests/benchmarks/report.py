"""What every benchmark writes: ``build/bench/NAME.json`` with its figures, the machine and the versions."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

OUTPUT = Path("build/bench")
_PACKAGES = ("graftwork", "torch", "transformers", "peft", "numpy", "vllm")


@dataclass(frozen=True)
class Figure:
    """One measured figure. ``value`` is ``numerator / denominator`` where it is a ratio; ``samples`` holds what each
    repetition gave."""

    name: str
    value: float
    unit: str
    numerator: float | None = None
    denominator: float | None = None
    samples: list[float] = field(default_factory=list)


def ratio(name: str, numerators: Sequence[float], denominators: Sequence[float], unit: str = "x") -> Figure:
    """The median of the ratios of pairs that were measured one right after the other."""
    samples = [above / below for above, below in zip(numerators, denominators, strict=True)]
    return Figure(
        name=name,
        value=statistics.median(samples),
        unit=unit,
        numerator=statistics.median(numerators),
        denominator=statistics.median(denominators),
        samples=samples,
    )


def median(name: str, values: Sequence[float], unit: str) -> Figure:
    """A figure that is no ratio."""
    return Figure(name=name, value=statistics.median(values), unit=unit, samples=list(values))


def write_report(name: str, figures: Sequence[Figure]) -> Path:
    """Write the report, print it as a table, and return its path."""
    document = {
        "machine": _machine(),
        "versions": _versions(),
        "figures": [asdict(figure) for figure in figures],
    }
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / f"{name}.json"
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    table = Table(title=name)
    for column in ("figure", "value", "numerator", "denominator", "samples"):
        table.add_column(column)
    for figure in figures:
        table.add_row(
            figure.name,
            f"{figure.value:.3g} {figure.unit}",
            *("" if part is None else f"{part:.4g}" for part in (figure.numerator, figure.denominator)),
            " ".join(f"{sample:.3g}" for sample in figure.samples),
        )
    Console().print(table)
    return path


def _machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "gpu": _gpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _gpu() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
