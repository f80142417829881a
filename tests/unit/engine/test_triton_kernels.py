"""The Triton kernels, run by Triton's interpreter where there is no GPU, against plain torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

TESTS = Path(__file__).parents[2]


def on_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def check(name: str) -> str:
    """What a check of ``support/triton_checks.py`` prints."""
    pytest.importorskip("triton", reason="triton is not installed; it comes with torch's CUDA builds")
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if not on_cuda():
        environment["TRITON_INTERPRET"] = "1"
    code = f"from support.triton_checks import {name}; {name}()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_products_equal_plain_ones() -> None:
    assert check("check_all_products").startswith("refused: results differ by ")


def test_attention_equals_plain_attention() -> None:
    assert check("check_attention").count("equal:") == 12


def test_an_engine_on_the_kernels_gives_the_plain_models_answers() -> None:
    if on_cuda():
        pytest.skip("on a CUDA device the engine's own recordings are tested, in test_step_graphs")
    assert int(check("check_engine").removeprefix("replayed: ")) > 0
