"""Sizes of what is about to be sent, for progress bars."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def total_bytes(paths: Iterable[Path]) -> int:
    """Bytes of the files, and of the files directly in the folders."""
    return sum(
        file.stat().st_size
        for path in paths
        for file in (path.iterdir() if path.is_dir() else (path,))
        if file.is_file()
    )
