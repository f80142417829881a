"""The official npm SDK, installed once from the package registry that npm is set up with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_VERSION = "6"
#: Ignored by git, and kept between runs.
_FOLDER = Path(__file__).parents[2] / "build" / "openai-npm"


def folder_with_sdk() -> Path:
    """A folder whose scripts find the package ``openai``; the test is skipped where it can't be had."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("the npm SDK needs node and npm on the PATH")
    if not (_FOLDER / "node_modules" / "openai" / "package.json").is_file():
        _FOLDER.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", f"openai@{_VERSION}", "--no-save", "--no-audit", "--no-fund", "--prefix", _FOLDER]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            pytest.skip(f"npm could not install openai@{_VERSION}: {done.stderr.strip().splitlines()[-1:]}")
    return _FOLDER
