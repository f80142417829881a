"""The artefact store: folders addressed by the sha256 of their content, written whole or not at all.

A folder is first copied to ``staging/<random>/content``, hashed on the way and flushed to disk, then renamed to its
final place. What a killed process leaves behind is either in staging, where its lock is gone, or at a final
place that no database row names; both are found and removed when the registry is opened next.

Lock order: the store's lock before the database's. Whoever renames a folder into place, or removes one, holds
the store's lock until the row that names it is committed, so a collector never takes one for an orphan.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from graft_server.registry.errors import (
    CorruptArtefactError,
    InvalidStoreError,
    RefusedArtefactError,
    storage_errors,
)

_BLOCK = 1 << 20
_PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
# The opcode PROTO with its version, and the archives that torch.save writes.
_PICKLE_HEAD = re.compile(rb"\x80[\x00-\x05]|PK\x03\x04")


@dataclass(frozen=True, slots=True, order=True)
class StoredFile:
    """One file of a stored folder; ``name`` is relative, with forward slashes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Staged:
    """A folder that lies in staging, ready to be put into its place."""

    content: Path
    files: tuple[StoredFile, ...]

    @property
    def digest(self) -> str:
        """sha256 (hex) over the sorted list of names, sizes and hashes."""
        return manifest_digest(self.files)

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)


def manifest_digest(files: Sequence[StoredFile]) -> str:
    """sha256 (hex) over the sorted list of names, sizes and hashes."""
    lines = (f"{file.sha256} {file.size} {file.name}\n" for file in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class ArtefactStore:
    """Stored folders under ``root``. Safe to share between threads and between processes.

    With ``shared``, what several servers need lies there, to be read in place; the folders of jobs stay under ``root``.
    """

    def __init__(self, root: Path, *, shared: Path | None = None) -> None:
        self.root = root
        self.place = shared or root
        self.artefacts = self.place / "artefacts"
        self.datasets = self.place / "datasets"
        self.jobs = root / "jobs"
        self._staging = self.place / "staging"
        #: A folder is renamed away within its own file system.
        self._jobs_staging = root / "staging"
        self._lock_file = self.place / "store.lock"

    def create(self) -> None:
        """Make the folders that are missing.

        Raises:
            InvalidStoreError: the shared folder can't be used.
            StorageFullError: no space is left.
        """
        with storage_errors(self.place):
            for folder in (self.jobs, self._jobs_staging):
                folder.mkdir(parents=True, exist_ok=True)
            try:
                for folder in (self.artefacts, self.datasets, self._staging):
                    folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError, PermissionError) as error:
                if self.place == self.root:
                    raise
                raise InvalidStoreError(f"{error.filename}: {error.strerror}") from error

    def artefact_path(self, digest: str) -> Path:
        """Where the artefact with this digest lies."""
        return self.artefacts / digest[:2] / digest

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store's lock. It is not reentrant, and it goes with the process that holds it."""
        with storage_errors(self.place), self._lock_file.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    @contextmanager
    def stage(self, folder: Path, *, allow_pickles: bool = False) -> Iterator[Staged]:
        """Copy ``folder`` into staging for the length of the block. What was not put into place is removed.

        Raises:
            RefusedArtefactError: the folder is missing or empty, or holds a link, a special file or a pickle.
            StorageFullError: no space is left.
        """
        slot = self._staging / secrets.token_hex(8)
        with storage_errors(self.place), contextlib.ExitStack() as stack:
            # A collector must never see the slot without its lock.
            with self.lock():
                slot.mkdir()
                stack.callback(shutil.rmtree, slot, ignore_errors=True)
                claim = stack.enter_context((slot / "lock").open("w"))
                fcntl.flock(claim, fcntl.LOCK_EX)
            content = slot / "content"
            files = tuple(sorted(_copy_tree(folder, content, allow_pickles=allow_pickles)))
            if not files:
                raise RefusedArtefactError(f"{folder}: there are no files in it")
            yield Staged(content, files)

    @contextmanager
    def placing(self, staged: Staged) -> Iterator[Callable[[Path], None]]:
        """Hold the lock, and give a function that renames the staged folder to its final place.

        Where the same content lies there already, that is kept. If the block raises, the folder goes again.
        """
        placed: list[Path] = []

        def place(target: Path) -> None:
            target.parent.mkdir(exist_ok=True)
            if not target.is_dir():
                staged.content.rename(target)
                placed.append(target)
                _flush(target.parent)
                _flush(target.parent.parent)

        with self.lock():
            try:
                yield place
            except BaseException:
                for target in placed:
                    self.remove(target)
                raise

    def remove(self, folder: Path) -> None:
        """Remove a folder, if it is there. Needs the lock.

        It is first renamed away: at its final place, a folder is always whole.
        """
        staging = self._jobs_staging if folder.parent in (self.jobs, self._jobs_staging) else self._staging
        doomed = staging / secrets.token_hex(8)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        if folder.parent.parent == self.artefacts:
            with contextlib.suppress(OSError):
                folder.parent.rmdir()

    def holds_anything(self) -> bool:
        """Whether an artefact, a dataset or a job's folder is there."""
        return any(any(folder.iterdir()) for folder in (self.artefacts, self.datasets, self.jobs))

    def verify(self, digest: str) -> None:
        """Read an artefact again and compare.

        Raises:
            CorruptArtefactError: its files are gone, or are not what was stored.
        """
        folder = self.artefact_path(digest)
        if not folder.is_dir():
            raise CorruptArtefactError(f"{folder}: the artefact's files are gone")
        names = sorted(path for path in folder.rglob("*") if not path.is_dir())
        files = [_hash_file(path, path.relative_to(folder).as_posix()) for path in names]
        if manifest_digest(files) != digest:
            raise CorruptArtefactError(f"{folder}: the files are not those that were stored, publish them again")

    def orphans(self, *, digests: set[str], datasets: set[str], jobs: set[str]) -> list[Path]:
        """Folders that none of the given names claims, and staging that no process uses. Needs the lock."""
        found = [
            folder
            for folder in sorted(self.artefacts.glob("*/*"))
            if folder != self.artefact_path(folder.name) or folder.name not in digests
        ]
        found += [folder for folder in sorted(self.datasets.iterdir()) if folder.name not in datasets]
        found += [folder for folder in sorted(self.jobs.iterdir()) if folder.name not in jobs]
        slots = {slot for staging in (self._staging, self._jobs_staging) for slot in staging.iterdir()}
        return found + sorted(slot for slot in slots if not _is_in_use(slot))


def shared_folder(url: str) -> Path:
    """The folder of a ``file://`` URL.

    Raises:
        InvalidStoreError: it is no such URL.
    """
    parsed = urlsplit(url)
    if parsed.scheme != "file" or parsed.netloc not in ("", "localhost") or not parsed.path.startswith("/"):
        raise InvalidStoreError(f"{url!r} is no folder; write it like file:///shared/folder")
    return Path(unquote(parsed.path))


def _is_in_use(slot: Path) -> bool:
    try:
        with (slot / "lock").open() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _copy_tree(source: Path, target: Path, *, allow_pickles: bool) -> Iterator[StoredFile]:
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
            yield _copy_file(here / name, copy / name, relative, allow_pickles=allow_pickles)
    for folder, _, _ in os.walk(target):
        _flush(Path(folder))
    _flush(target.parent)


def _raise(error: OSError) -> None:
    raise error


def _copy_file(source: Path, target: Path, name: str, *, allow_pickles: bool) -> StoredFile:
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


def _hash_file(path: Path, name: str) -> StoredFile:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return StoredFile(name, stream.tell(), digest.hexdigest())


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
