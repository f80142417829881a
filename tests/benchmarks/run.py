"""Every benchmark, one after the other, and one table of all figures with their bounds: ``make bench``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from demo.data import base_model_spec, cache_dir, dataset
from graft_server.base_model import resolve

HERE = Path(__file__).parent
OUTPUT = Path("build/bench")
#: What a figure must reach.
BOUNDS = {"train_over_trainer": 1.5, "mixed8_over_base": 0.85}


def main() -> None:
    console = Console()
    base = resolve(base_model_spec(), cache_dir(), lambda message, _: console.print(message))
    runs = {
        "train_over_trainer": ["--data", str(dataset("translation-de"))],
        "mixed_batch": [],
    }
    for name, arguments in runs.items():
        console.rule(name)
        script = str(HERE / f"{name}.py")
        subprocess.run([sys.executable, script, "--base-model", str(base.path), *arguments], check=True)
    table = Table(title="all figures")
    for column in ("figure", "value", "at least", "numerator", "denominator", ""):
        table.add_column(column)
    for name in runs:
        for figure in json.loads((OUTPUT / f"{name}.json").read_text())["figures"]:
            bound = BOUNDS.get(figure["name"])
            verdict = "" if bound is None else "reached" if figure["value"] >= bound else "MISSED"
            sides = [f"{figure[side]:.0f}" if figure[side] is not None else "" for side in ("numerator", "denominator")]
            table.add_row(figure["name"], f"{figure['value']:.2f}", str(bound or ""), *sides, verdict)
    console.print(table)


if __name__ == "__main__":
    main()
