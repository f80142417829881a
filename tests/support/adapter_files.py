"""Reading an adapter's two files, and writing changed ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and the tensors in ``folder``."""
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return config, load_file(folder / "adapter_model.safetensors")
