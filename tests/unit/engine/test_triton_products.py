"""The Triton kernels, run by Triton's interpreter where there is no GPU, against plain products."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.torch

CHECK = """
import torch
from graft_server.engine.torch.indexed import GatheredProducts, check_products
from graft_server.engine.torch.triton_products import TritonProducts

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):
    check_products(TritonProducts(), dtype, device, tolerance)

class Wrong(TritonProducts):
    def expand_add(self, output, hidden, up, positions):
        super().expand_add(output, hidden, up, positions.roll(1))

try:
    check_products(Wrong(), torch.float32, device, 1e-5)
except ArithmeticError as error:
    print("refused:", error)
"""


def test_kernels_equal_plain_products() -> None:
    pytest.importorskip("triton", reason="triton is not installed; it comes with torch's CUDA builds")
    # Triton looks at this when it is imported.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: results differ by ")
