"""Checkpoints of jobs in the store that servers share, so that whoever takes a job over goes on from the last one.

A checkpoint is a folder ``checkpoints/JOB/NAME.DIGEST``. Names sort by age, and the digest is that of the files, so a
server that has lost the job and does not know it yet can neither change what its successor wrote, nor pass damaged
files for a checkpoint. A job has one there, and a second one while it is replaced.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from graft_server.registry import claims, jobs
from graft_server.registry.artefacts import ArtefactStore
from graft_server.registry.copying import flush_tree
from graft_server.registry.database import Database
from graft_server.registry.errors import (
    CorruptArtefactError,
    LostClaimError,
    RefusedArtefactError,
    StoreUnavailableError,
)
from graft_server.registry.records import JobRecord
from graft_server.registry.sharing import Sharing

log = logging.getLogger(__name__)


class Checkpoints:
    """See the module. Where the servers share no store, nothing is kept and nothing is found."""

    def __init__(self, database: Database, store: ArtefactStore, sharing: Sharing) -> None:
        self._database = database
        self._store = store
        self._sharing = sharing

    def keep(self, job: JobRecord, folder: Path) -> None:
        """Store a copy of the checkpoint ``folder`` in place of the job's older ones.

        Raises:
            LostClaimError: another server has taken the job over; its checkpoints are untouched.
            RefusedArtefactError, OSError: the folder is gone, or went meanwhile.
            StorageFullError: no space is left.
            StoreUnavailableError: the store does not answer.
        """
        if not self._store.is_shared:
            return
        self._sharing.claim()
        self._check_claim(job)
        with self._store.stage(folder) as staged:
            target = self._folder(job) / f"{folder.name}.{staged.digest}"
            self._store.deposit(staged, target)
        try:
            self._check_claim(job)
        except LostClaimError:
            self._store.withdraw(target)
            raise
        for older in self._store.deposited(target.parent):
            if older != target and _name(older) <= folder.name:
                self._store.withdraw(older)

    def fetch(self, job: JobRecord, parent: Path) -> str | None:
        """Bring the job's newest checkpoint into the folder ``parent``, unless one at least as new is there; its name.

        Raises:
            StorageFullError: no space is left.
            StoreUnavailableError: the store does not answer.
        """
        if not self._store.is_shared:
            return None
        newest_here = max((path.name for path in parent.glob("[!.]*")), default="")
        for found in reversed(self._store.deposited(self._folder(job))):
            name, digest = _name(found), found.suffix[1:]
            if name <= newest_here:
                break
            staging = parent / f".{name}.staging"
            shutil.rmtree(staging, ignore_errors=True)
            parent.mkdir(parents=True, exist_ok=True)
            try:
                self._store.bring(found, digest, staging)
            except (CorruptArtefactError, RefusedArtefactError, FileNotFoundError) as error:
                log.warning("job %s: checkpoint %s can't be used: %s", job.id, name, error)
                shutil.rmtree(staging, ignore_errors=True)
                continue
            flush_tree(staging)
            staging.rename(parent / name)
            return name
        return None

    def drop(self, job: JobRecord) -> None:
        """Remove those of a job that is over for good. What can't be removed now is garbage later."""
        if not self._store.is_shared:
            return
        try:
            for folder in self._store.deposited(self._folder(job)):
                self._store.withdraw(folder)
        except StoreUnavailableError as error:
            log.warning("%s; the checkpoints of job %s are removed with the next collection of garbage", error, job.id)

    def _check_claim(self, job: JobRecord) -> None:
        with self._database.read() as session:
            claims.check(jobs.find(session, job.id), job.claim)

    def _folder(self, job: JobRecord) -> Path:
        return self._store.checkpoints / job.id


def _name(stored: Path) -> str:
    """What a stored checkpoint was called where it was written."""
    return stored.stem
