"""What stands in a store: a folder's files with the digest that they make together, and whose the store is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

#: Says in a store that servers share which registry's database names what lies in it.
OWNER_FILE = "registry.json"


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


def owner_document(registry: str) -> str:
    return json.dumps({"registry": registry})


def owner_in(document: bytes) -> str:
    """Raises:
    ValueError, KeyError, TypeError: it is no such document.
    """
    return str(json.loads(document)["registry"])
