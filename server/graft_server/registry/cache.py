"""The artefact store in front of an object store: what has been fetched lies in the data folder until room is needed.

An entry is a folder at its final place, so it is whole, and verified when it was fetched. The engine, jobs and whoever
else reads one hold it meanwhile; of those that nobody holds, the ones used longest ago go first.

Lock order: the store's lock before the mutex. Entries come and go under both, so whoever holds the mutex sees an entry
whose files are there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from graft_server.registry.artefacts import ArtefactStore, Staged
from graft_server.registry.copying import flush_tree
from graft_server.registry.errors import (
    CorruptArtefactError,
    NotFetchedError,
    RegistryError,
    StorageFullError,
    StoreUnavailableError,
    storage_errors,
)
from graft_server.registry.objects import ObjectStore

log = logging.getLogger(__name__)

FOLDER = "cache"

#: Folders fetched at once.
_FETCHES = 4
#: Seconds for which an object store that did not answer is not asked again, for its drivers are slow to give up; nor
#: for a folder that could not be fetched.
_PAUSE = 5.0
#: What nothing was written to for so long is no upload in progress.
_ABANDONED = timedelta(days=1)


class CachedStore(ArtefactStore):
    """Folders of an object store, at most about ``budget`` bytes of them on this machine: what is held, and what was
    used last, stays beyond it."""

    def __init__(self, root: Path, objects: ObjectStore, *, budget: int) -> None:
        super().__init__(root, shared=root / FOLDER)
        self._objects = objects
        self._budget = budget
        self._mutex = Lock()
        #: Bytes of each entry, the one used longest ago first.
        self._entries: OrderedDict[Path, int] = OrderedDict()
        self._bytes = 0
        self._holders: Counter[Path] = Counter()
        #: Folders that were let go and are still among the holders'; read under the mutex. A hold may end in a garbage
        #: collection, in the middle of whatever its thread does and with any lock in its hands: to put something into
        #: such a queue, which may happen inside another put, is all that it does.
        self._let_go: SimpleQueue[Path] = SimpleQueue()
        #: Wakes the evictor.
        self._due: SimpleQueue[None] = SimpleQueue()
        self._closed = False
        self._fetches: dict[Path, Future[None]] = {}
        self._silence: tuple[float, StoreUnavailableError] | None = None
        #: What went wrong with the last fetch of a folder, and until when nobody tries again.
        self._failures: dict[Path, tuple[float, RegistryError]] = {}
        self._pool = ThreadPoolExecutor(_FETCHES, thread_name_prefix="artefact-fetch")
        self._evictor = Thread(target=self._make_room, name="artefact-evictor", daemon=True)

    def create(self) -> None:
        super().create()
        found = [*self.artefacts.glob("*/*"), *self.datasets.iterdir(), *self.kept_files.iterdir()]
        for folder in sorted(found, key=lambda folder: folder.stat().st_mtime):
            self._enter(folder, _size(folder))
        self._evictor.start()
        self._due.put(None)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._closed = True
        self._due.put(None)
        if self._evictor.is_alive():
            self._evictor.join()

    # Reading

    @contextmanager
    def held(self, folder: Path, digest: str, *, wait: bool = True) -> Iterator[Path]:
        while not self._hold(folder):
            if not wait:
                raise self._not_here(folder, digest)
            # Between the fetch and our hold others may have needed the room.
            self.fetch(folder, digest).result()
        try:
            yield folder
        finally:
            self._let_go.put(folder)
            self._due.put(None)

    def fetch(self, folder: Path, digest: str) -> Future[None]:
        """The fetch of a folder, one for all who ask meanwhile. It raises what ``ObjectStore.fetch`` does, or a
        ``StorageFullError``."""
        with self._mutex:
            running = self._fetches.get(folder)
            if running is not None:
                return running
            if folder in self._entries:
                return _done(None)
            if refusal := self._refusal(folder):
                return _done(refusal)
            future = self._fetches[folder] = self._pool.submit(self._fetch, folder, digest)
            return future

    def verify(self, digest: str) -> None:
        folder = self.artefact_path(digest)
        with self.held(folder, digest):
            try:
                super().verify(digest)
            except CorruptArtefactError as error:
                log.warning("%s; it is fetched again", error)
            else:
                return
        with self.lock():
            self.remove(folder)
        with self.held(folder, digest):
            super().verify(digest)

    def _fetch(self, folder: Path, digest: str) -> None:
        try:
            try:
                self._download(folder, digest)
            except StorageFullError:
                if not self._evict(0, spared=0):
                    raise
                self._download(folder, digest)
            self._silence = None
            self._failures.pop(folder, None)
        except RegistryError as error:
            until = time.monotonic() + _PAUSE
            self._failures[folder] = (until, error)
            if isinstance(error, StoreUnavailableError):
                self._silence = (until, error)
            raise
        finally:
            with self._mutex:
                del self._fetches[folder]
        self._evict(self._budget)

    def _download(self, folder: Path, digest: str) -> None:
        with self._slot() as content:
            self._objects.fetch(self._key(folder), digest, content)
            flush_tree(content)
            size = _size(content)
            with self.lock():
                if not folder.is_dir():
                    self._put(content, folder)
                self._enter(folder, size)

    def _not_here(self, folder: Path, digest: str) -> RegistryError:
        """What somebody is told who does not wait: to ask for a fetch, or why there is none."""
        with self._mutex:
            refusal = None if folder in self._fetches else self._refusal(folder)
        return refusal or NotFetchedError(folder, digest)

    def _refusal(self, folder: Path) -> RegistryError | None:
        """Why a folder is not fetched just now."""
        for failure in (self._failures.get(folder), self._silence):
            if failure is not None and time.monotonic() < failure[0]:
                # Raised again and again, it would collect the frames of all who were told.
                return failure[1].with_traceback(None)
        return None

    # Entries

    def _enter(self, folder: Path, size: int) -> None:
        with self._mutex:
            self._drop(folder)
            self._entries[folder] = size
            self._bytes += size

    def _drop(self, folder: Path) -> None:
        self._bytes -= self._entries.pop(folder, 0)

    def _hold(self, folder: Path) -> bool:
        """Whether the folder is here; then it stays until it is let go."""
        with self._mutex:
            if folder not in self._entries:
                return False
            try:
                # The order outlasts this process in the folders' times.
                os.utime(folder)
            except FileNotFoundError:
                self._drop(folder)  # somebody tidied up
                return False
            self._holders[folder] += 1
            self._entries.move_to_end(folder)
            return True

    def _make_room(self) -> None:
        """Keep the entries within the budget, as what holds them ends; the work of a thread of its own."""
        while not self._closed:
            self._due.get()
            with self._mutex:
                self._end_holds()
                full = self._bytes > self._budget
            if not full or self._closed:  # the next process finds the cache too large
                continue
            try:
                self._evict(self._budget)
            except (RegistryError, OSError) as error:
                log.warning("no room could be made in %s: %s", self.place, error)

    def _end_holds(self) -> None:
        """Take note of what was let go. Needs the mutex."""
        with contextlib.suppress(Empty):
            while True:
                folder = self._let_go.get_nowait()
                self._holders[folder] -= 1
                if not self._holders[folder]:
                    del self._holders[folder]

    def _evict(self, budget: int, *, spared: int = 1) -> bool:
        """Remove entries that nobody holds until they have ``budget`` bytes, but for the ``spared`` ones used last:
        whoever fetched one is about to hold it. Whether anything was removed."""
        removed = False
        with self.lock():
            while (victim := self._victim(budget, spared)) is not None:
                self.remove(victim)
                removed = True
        return removed

    def _victim(self, budget: int, spared: int) -> Path | None:
        with self._mutex:
            self._end_holds()
            if self._bytes <= budget:
                return None
            oldest = islice(self._entries, len(self._entries) - spared)
            victim = next((folder for folder in oldest if folder not in self._holders), None)
            if victim is not None:
                # Under the mutex, so that nobody holds it between here and its removal.
                self._drop(victim)
            return victim

    def remove(self, folder: Path) -> None:
        with self._mutex:
            self._drop(folder)
        super().remove(folder)

    # Writing

    def upload(self, staged: Staged, target: Path) -> None:
        self._objects.put(self._key(target), staged.content, staged.files)

    @contextmanager
    def placing(self, staged: Staged) -> Iterator[Callable[[Path], None]]:
        with super().placing(staged) as place:

            def place_uploaded(target: Path) -> None:
                # It may have been taken for an orphan since it was uploaded. Now the database is held, and with it
                # whoever removes orphans: what is there stays there.
                self.upload(staged, target)
                place(target)
                self._enter(target, staged.size_bytes)

            yield place_uploaded
        self._due.put(None)

    def deposit(self, staged: Staged, target: Path) -> None:
        self.upload(staged, target)

    def deposited(self, parent: Path) -> list[Path]:
        return [parent / name for name in self._objects.names(self._key(parent))]

    def bring(self, folder: Path, digest: str, target: Path) -> None:
        with storage_errors(self.root):
            self._objects.fetch(self._key(folder), digest, target)

    def withdraw(self, folder: Path) -> None:
        self.discard(folder)

    def discard(self, folder: Path, *, before_each: Callable[[], object] = lambda: None) -> None:
        # The database is held meanwhile: nobody waits for a store that is known not to answer.
        silence = self._silence
        if silence is not None and time.monotonic() < silence[0]:
            raise silence[1].with_traceback(None)
        try:
            self._objects.delete(self._key(folder), before_each=before_each)
        except StoreUnavailableError as error:
            self._silence = (time.monotonic() + _PAUSE, error)
            raise

    def abandoned(self) -> list[Path]:
        return [self.place / key for key in self._objects.keys(older_than=_ABANDONED)]

    # Ownership

    def owner(self) -> str | None:
        return self._objects.owner()

    def own(self, registry: str) -> None:
        self._objects.own(registry)

    def holds_shared(self) -> bool:
        return not self._objects.is_empty()

    def _key(self, folder: Path) -> str:
        return folder.relative_to(self.place).as_posix()


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _done(error: Exception | None) -> Future[None]:
    future: Future[None] = Future()
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
    return future
