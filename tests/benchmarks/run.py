"""Every benchmark, one after the other, and one table of all figures with their bounds: ``make bench``.

``--vllm`` runs those of vLLM instead, in vLLM's environment: ``make bench-vllm``.

``--only NAME`` runs some of them, and the table then shows what the others wrote when they ran last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from bounds import summary
from report import OUTPUT
from rich.console import Console

from demo.data import base_model_spec, cache_dir, dataset
from graft_server.base_model import resolve
from graft_server.children import background_environment, engine_environment

HERE = Path(__file__).parent
BENCHMARKS = (
    "train_over_trainer",
    "static_batch",
    "stream",
    "http_over_engine",
    "v1_over_engine",
    "more_adapters_than_slots",
    "tpot_while_loading",
    "ttft_from_disk",
    "many_adapters",
    "quiet_under_flood",
    "routing_by_text",
)
VLLM_BENCHMARKS = ("vllm_batch", "vllm_behind_server")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", choices=BENCHMARKS + VLLM_BENCHMARKS, help="run this one; can be given again"
    )
    parser.add_argument("--pairs", type=int, help="how often each side is measured [default: each benchmark's own]")
    parser.add_argument("--vllm", action="store_true", help="run the benchmarks of the vLLM engine")
    arguments = parser.parse_args()
    console = Console()
    base = resolve(base_model_spec(), cache_dir(), lambda message, _: console.print(message))
    pairs = ["--pairs", str(arguments.pairs)] if arguments.pairs else []
    for name in arguments.only or (VLLM_BENCHMARKS if arguments.vllm else BENCHMARKS):
        console.rule(name)
        trains = name == "train_over_trainer"
        own = ["--data", str(dataset("translation-de"))] if trains else []
        command = [sys.executable, str(HERE / f"{name}.py"), "--base-model", str(base.path), *pairs, *own]
        subprocess.run(command, check=True, env=_environment(trains=trains))
    reports = [OUTPUT / f"{name}.json" for name in BENCHMARKS + VLLM_BENCHMARKS]
    console.print(summary(figure for path in reports if path.exists() for figure in _figures(path)))


def _figures(report: Path) -> list[dict[str, object]]:
    return list(json.loads(report.read_text(encoding="utf-8"))["figures"])


def _environment(*, trains: bool) -> dict[str, str]:
    """Scripts find what the test suites share; an engine or a training in a script computes as one of a server does."""
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = background_environment() if trains else engine_environment()
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


if __name__ == "__main__":
    main()
