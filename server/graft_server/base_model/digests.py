"""sha256 over large files, remembered by path, size and modification time so that no file is read twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path


def remembered_sha256(files: Sequence[Path], head: bytes, cache_dir: Path) -> str:
    """sha256 (hex) over ``head`` and then the bytes of each file, in the order given."""
    stats = [(file, file.stat()) for file in files]
    key = hashlib.sha256(head)
    for file, stat in stats:
        key.update(f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    note = cache_dir / "digests" / f"{key.hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(note.read_text(encoding="utf-8"))["sha256"])
    digest = hashlib.sha256(head)
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    # A cache that can't be written costs time, not correctness.
    with contextlib.suppress(OSError):
        write_atomically(note, json.dumps({"files": [str(file) for file in files], "sha256": digest.hexdigest()}))
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(name, path)
