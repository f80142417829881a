"""Copies of folders: hashed on the way, flushed to disk, and of regular files without pickles only."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from graft_server.registry.errors import RefusedArtefactError
from graft_server.registry.stored import StoredFile
from graft_server.whole_files import flush

_BLOCK = 1 << 20
_PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
# The opcode PROTO with its version, and the archives that torch.save writes.
_PICKLE_HEAD = re.compile(rb"\x80[\x00-\x05]|PK\x03\x04")


def copy_tree(source: Path, target: Path, *, allow_pickles: bool) -> Iterator[StoredFile]:
    """Copy regular files below ``source``, hashing them, and flush files and folders to disk."""
    if not source.is_dir():
        raise RefusedArtefactError(f"{source}: no such folder")
    target.mkdir()
    for folder, folders, names in os.walk(source, onerror=_raise):
        here = Path(folder)
        copy = target / here.relative_to(source)
        for name in folders:
            if (here / name).is_symlink():
                raise RefusedArtefactError(f"{here / name}: links are not stored, copy what it points to")
            (copy / name).mkdir()
        for name in names:
            relative = (here / name).relative_to(source).as_posix()
            yield copy_file(here / name, copy / name, relative, allow_pickles=allow_pickles)
    for folder, _, _ in os.walk(target):
        flush(Path(folder))
    flush(target.parent)


def _raise(error: OSError) -> None:
    raise error


def copy_file(source: Path, target: Path, name: str, *, allow_pickles: bool) -> StoredFile:
    """Copy a regular file, hashing it, and flush it to disk; ``name`` is what it is stored as."""
    if source.is_symlink():
        raise RefusedArtefactError(f"{source}: links are not stored, copy what it points to")
    if not stat.S_ISREG(source.lstat().st_mode):
        raise RefusedArtefactError(f"{source}: not a regular file")
    if not allow_pickles and source.suffix.lower() in _PICKLE_SUFFIXES:
        raise RefusedArtefactError(f"{source}: pickled files can run code and are refused, use safetensors")
    digest, size = hashlib.sha256(), 0
    # Should the file be swapped for a link after the look above, opening it fails.
    with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb") as reader, target.open("xb") as writer:
        whole = os.fstat(reader.fileno()).st_size
        while block := reader.read(_BLOCK):
            if size == 0 and not allow_pickles and _is_pickle(block, whole):
                raise RefusedArtefactError(f"{source}: pickled files can run code and are refused, use safetensors")
            digest.update(block)
            size += len(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    return StoredFile(name, size, digest.hexdigest())


def _is_pickle(head: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that begins with ``head`` is a pickle."""
    # A safetensors file begins with the length of its JSON header, whose bytes can be those of the opcode PROTO.
    if head[8:9] == b"{" and 8 + int.from_bytes(head[:8], "little") <= size:
        return False
    return _PICKLE_HEAD.match(head) is not None


def hash_file(path: Path, name: str) -> StoredFile:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return StoredFile(name, stream.tell(), digest.hexdigest())


def flush_tree(folder: Path) -> None:
    """Flush a folder's files and folders to disk."""
    for here, _, names in os.walk(folder):
        for name in names:
            flush(Path(here) / name)
        flush(Path(here))
