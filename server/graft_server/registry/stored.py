"""A stored folder's files, and the digest that they make together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class StoredFile:
    """One file of a stored folder; ``name`` is relative, with forward slashes."""

    name: str
    size: int
    sha256: str


def manifest_digest(files: Sequence[StoredFile]) -> str:
    """sha256 (hex) over the sorted list of names, sizes and hashes."""
    lines = (f"{file.sha256} {file.size} {file.name}\n" for file in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
