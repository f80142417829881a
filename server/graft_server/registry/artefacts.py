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
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from graft_server.registry.copying import copy_file, copy_tree, hash_file
from graft_server.registry.errors import (
    CorruptArtefactError,
    InvalidStoreError,
    RefusedArtefactError,
    StoreUnavailableError,
    UncertainError,
    storage_errors,
)
from graft_server.registry.stored import OWNER_FILE, StoredFile, manifest_digest, owner_document, owner_in
from graft_server.whole_files import flush, write_whole

#: Seconds for which somebody waits for the store's lock at most. It is held for moments.
LOCK_SECONDS = 30.0


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


class ArtefactStore:
    """Stored folders under ``root``. Safe to share between threads and between processes.

    With ``shared``, what several servers need lies there, to be read in place; the folders of jobs stay under ``root``.
    """

    def __init__(self, root: Path, *, shared: Path | None = None) -> None:
        self.root = root
        self.place = shared or root
        self.is_shared = shared is not None
        self.artefacts = self.place / "artefacts"
        self.datasets = self.place / "datasets"
        #: Of callers, each in a folder of its own.
        self.kept_files = self.place / "kept-files"
        #: Of jobs at work, where servers share a store; see ``checkpoints``.
        self.checkpoints = self.place / "checkpoints"
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
                for folder in (self.artefacts, self.datasets, self.kept_files, self._staging):
                    folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError, PermissionError) as error:
                if not self.is_shared:
                    raise
                raise InvalidStoreError(f"{error.filename}: {error.strerror}") from error

    def artefact_path(self, digest: str) -> Path:
        """Where the artefact with this digest lies."""
        return self.artefacts / digest[:2] / digest

    def reads(self, folder: Path) -> bool:
        """Whether this server can read a folder of the registry: it lies here, or where all servers read."""
        return self.is_shared or folder.is_dir()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store's lock. It is not reentrant, and it goes with the process that holds it.

        Raises:
            StoreUnavailableError: another process has held it for too long: it is stopped, or its disk hangs.
        """
        with storage_errors(self.place), self._lock_file.open("w") as stream:
            self._wait_for(stream)
            yield

    def _wait_for(self, stream: TextIO) -> None:
        until, pause = time.monotonic() + LOCK_SECONDS, 0.001
        while True:
            try:
                return fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    reason = f"another process has held its lock for {LOCK_SECONDS:g} s"
                    raise StoreUnavailableError(str(self.place), reason) from None
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    @contextmanager
    def stage(self, folder: Path, *, allow_pickles: bool = False) -> Iterator[Staged]:
        """Copy ``folder`` into staging for the length of the block. What was not put into place is removed.

        Raises:
            RefusedArtefactError: the folder is missing or empty, or holds a link, a special file or a pickle.
            StorageFullError: no space is left.
        """
        with self._slot() as content:
            files = tuple(sorted(copy_tree(folder, content, allow_pickles=allow_pickles)))
            if not files:
                raise RefusedArtefactError(f"{folder}: there are no files in it")
            yield Staged(content, files)

    @contextmanager
    def stage_file(self, source: Path, name: str) -> Iterator[Staged]:
        """Copy one file into a folder in staging, under ``name``; otherwise as ``stage``.

        Raises:
            StorageFullError: no space is left.
        """
        with self._slot() as content:
            content.mkdir()
            file = copy_file(source, content / name, name, allow_pickles=True)
            flush(content)
            flush(content.parent)
            yield Staged(content, (file,))

    @contextmanager
    def _slot(self) -> Iterator[Path]:
        """Where a folder in staging may be made, for the length of the block."""
        slot = self._staging / secrets.token_hex(8)
        with storage_errors(self.place), contextlib.ExitStack() as stack:
            # A collector must never see the slot without its lock.
            with self.lock():
                slot.mkdir()
                stack.callback(shutil.rmtree, slot, ignore_errors=True)
                claim = stack.enter_context((slot / "lock").open("w"))
                fcntl.flock(claim, fcntl.LOCK_EX)
            yield slot / "content"

    @contextmanager
    def placing(self, staged: Staged) -> Iterator[Callable[[Path], None]]:
        """Hold the lock, and give a function that renames the staged folder to its final place.

        Where the same content lies there already, that is kept. If the block raises, the folder goes again, unless the
        row that names it may have been committed all the same: what has no row then is collected as garbage.
        """
        placed: list[Path] = []

        def place(target: Path) -> None:
            if not target.is_dir():
                placed.append(target)  # first: a flush behind the rename may fail
                self._put(staged.content, target)

        with self.lock():
            try:
                yield place
            except UncertainError:
                raise
            except BaseException:
                for target in placed:
                    self.remove(target)
                raise

    def _put(self, content: Path, target: Path) -> None:
        """Rename a folder to its final place, where none is. Needs the lock."""
        target.parent.mkdir(exist_ok=True)
        content.rename(target)
        flush(target.parent)
        flush(target.parent.parent)

    def remove(self, folder: Path) -> None:
        """Remove a folder, if it is there. Needs the lock.

        It is first renamed away: at its final place, a folder is always whole.
        """
        staging = self._jobs_staging if folder.parent in (self.jobs, self._jobs_staging) else self._staging
        doomed = staging / secrets.token_hex(8)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        if folder.parent.parent in (self.artefacts, self.checkpoints):
            with contextlib.suppress(OSError):
                folder.parent.rmdir()

    def holds_anything(self) -> bool:
        """Whether an artefact, a dataset or a job's folder is there."""
        return any(self.jobs.iterdir()) or self.holds_shared()

    @contextmanager
    def held(self, folder: Path, digest: str, *, wait: bool = True) -> Iterator[Path]:
        """Have a folder's files where they are read, for the length of the block; ``digest`` is that of its files.

        Raises:
            NotFetchedError: they have to be fetched, and the caller does not ``wait``.
            CorruptArtefactError: what was fetched is not what was stored.
            StoreUnavailableError: they have to be fetched, and the object store does not answer.
            StorageFullError: they have to be fetched, and no space is left.
        """
        yield folder

    def fetch(self, folder: Path, digest: str) -> Future[None]:
        """Begin to have a folder's files where they are read; see ``held``."""
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def upload(self, staged: Staged, target: Path) -> None:
        """Send a staged folder to where other servers find it, ahead of ``placing``."""

    def deposit(self, staged: Staged, target: Path) -> None:
        """Put a staged folder where all servers find it, for somebody else to ``bring``."""
        self.checkpoints.mkdir(exist_ok=True)
        with self.placing(staged) as place:
            place(target)

    def deposited(self, parent: Path) -> list[Path]:
        """The whole folders that were deposited in ``parent``, by name."""
        return sorted(parent.iterdir()) if parent.is_dir() else []

    def bring(self, folder: Path, digest: str, target: Path) -> None:
        """Copy a deposited folder, whose files have this digest, to the new folder ``target``.

        Raises:
            CorruptArtefactError: it is not what was deposited.
            RefusedArtefactError, FileNotFoundError: it is gone, or went meanwhile.
            StorageFullError: no space is left.
            StoreUnavailableError: the store does not answer.
        """
        with storage_errors(self.root):
            files = tuple(copy_tree(folder, target, allow_pickles=False))
        if manifest_digest(files) != digest:
            raise CorruptArtefactError(f"{folder}: the files are not those that were stored")

    def withdraw(self, folder: Path) -> None:
        """Remove a deposited folder, if it is there."""
        with self.lock():
            self.remove(folder)

    def discard(self, folder: Path, *, before_each: Callable[[], object] = lambda: None) -> None:
        """Remove what ``upload`` sent. Needs the database's write lock, under which no row names the folder;
        ``before_each`` file is removed it is called, and raises where the lock is lost."""

    def abandoned(self) -> list[Path]:
        """Folders that ``upload`` sent, but for those that may be under way."""
        return []

    def owner(self) -> str | None:
        """The registry that what is shared belongs to; ``None`` before it is any's, or where nothing is shared."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return owner_in((self.place / OWNER_FILE).read_bytes())
        return None

    def own(self, registry: str) -> None:
        """Write down which registry what is shared belongs to."""
        with storage_errors(self.place):
            write_whole(self.place / OWNER_FILE, owner_document(registry))

    def holds_shared(self) -> bool:
        """Whether there is anything that other servers read."""
        return any(any(folder.iterdir()) for folder in (self.artefacts, self.datasets, self.kept_files))

    def close(self) -> None:
        """End what goes on in the background."""

    def verify(self, digest: str) -> None:
        """Read an artefact again and compare.

        Raises:
            CorruptArtefactError: its files are gone, or are not what was stored.
        """
        folder = self.artefact_path(digest)
        if not folder.is_dir():
            raise CorruptArtefactError(f"{folder}: the artefact's files are gone")
        names = sorted(path for path in folder.rglob("*") if not path.is_dir())
        files = [hash_file(path, path.relative_to(folder).as_posix()) for path in names]
        if manifest_digest(files) != digest:
            raise CorruptArtefactError(f"{folder}: the files are not those that were stored, publish them again")

    def orphans(
        self, *, digests: set[str], datasets: set[str], files: set[str], jobs: set[str], checkpointed: set[str]
    ) -> list[Path]:
        """Folders that none of the given names claims, and staging that no process uses. ``checkpointed`` are the jobs
        whose checkpoints stay. Needs the lock."""
        found = [
            folder
            for folder in sorted(self.artefacts.glob("*/*"))
            if folder != self.artefact_path(folder.name) or folder.name not in digests
        ]
        found += [folder for folder in sorted(self.datasets.iterdir()) if folder.name not in datasets]
        found += [folder for folder in sorted(self.kept_files.iterdir()) if folder.name not in files]
        found += [folder for folder in sorted(self.jobs.iterdir()) if folder.name not in jobs]
        found += [folder for folder in sorted(self.checkpoints.glob("*/*")) if folder.parent.name not in checkpointed]
        slots = {slot for staging in (self._staging, self._jobs_staging) for slot in staging.iterdir()}
        return found + sorted(slot for slot in slots if not _is_in_use(slot))


def _is_in_use(slot: Path) -> bool:
    try:
        with (slot / "lock").open() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
