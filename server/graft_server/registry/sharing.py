"""Files that several servers of a registry share: whose they are, how they come there, and what of them is garbage."""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from graft_server.registry import documents, jobs
from graft_server.registry.artefacts import ArtefactStore
from graft_server.registry.database import Database
from graft_server.registry.errors import ConflictError, StoreUnavailableError, UnavailableError
from graft_server.registry.models import Artefact, Dataset, Setting
from graft_server.registry.visibility import EVERYTHING

log = logging.getLogger(__name__)

_IDENTITY = "registry_id"


class Sharing:
    """The shared part of an artefact store. Where nothing is shared, nothing happens."""

    def __init__(self, database: Database, store: ArtefactStore) -> None:
        self._database = database
        self._store = store
        self._claimed = not store.is_shared

    def open(self) -> None:
        """Claim the store, and bring into it what lay in the data folder before it was used.

        Raises:
            ConflictError: it is another registry's.
            StoreUnavailableError: it does not answer, and there are files to bring there.
        """
        if self._claimed:
            return
        left = self._left_behind()
        try:
            self.claim()
        except StoreUnavailableError as error:
            if left:
                raise
            log.warning("%s; until it does, only what is in the cache can be served", error)
        if left:
            log.info("moving %d folders of artefacts, datasets and files from %s", len(left), self._store.root)
        for folder, target in left.items():
            with self._store.stage(folder, allow_pickles=True) as staged:
                self._store.upload(staged, target)
                with self._store.placing(staged) as place, self._database.write():
                    place(target)
            shutil.rmtree(folder)

    def claim(self) -> None:
        """Whoever writes to the store asks for this first.

        Raises:
            ConflictError: it is another registry's, whose files would be taken for garbage.
            StoreUnavailableError: it does not answer.
        """
        if self._claimed:
            return
        owner, identity = self._store.owner(), self._identity()
        if owner is None and not self._store.holds_shared():
            self._store.own(identity)
        elif owner != identity:
            raise ConflictError(
                f"the artefact store holds the files of another registry than {self._database.name}: use that "
                "registry's database, or another bucket, prefix or folder"
            )
        self._claimed = True

    def discard(self, folders: Iterable[Path]) -> None:
        """Remove from the store what no row names any more. What can't be removed now is garbage later."""
        for folder in folders:
            try:
                self._discard(folder)
            except UnavailableError as error:
                log.warning("%s; %s is removed with the next collection of garbage", error, folder.name)
                return

    def collect(self, *, dry_run: bool) -> list[Path]:
        """Remove from the store what no row names; returns it.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        if not self._store.is_shared:
            return []
        self.claim()
        stored = self._store.abandoned()
        with self._database.read() as session:
            kinds = {self._row_of(folder)[0] for folder in stored}
            named = {(kind, row) for kind in kinds for row in session.scalars(rows_keeping(kind))}
        orphans = [folder for folder in stored if self._row_of(folder) not in named]
        return orphans if dry_run else [folder for folder in orphans if self._discard(folder)]

    def _discard(self, folder: Path) -> bool:
        # Nobody commits a row that names the folder meanwhile: there is one writer at a time.
        with self._database.write() as session:
            if self._is_named(session, folder):
                return False
            # And whoever took too long, and has lost the right to write, removes nothing more.
            self._store.discard(folder, before_each=lambda: session.scalar(select(1)))
            return True

    def _row_of(self, folder: Path) -> tuple[str, str]:
        """The kind of a folder, and the row that has to be there for it to stay: a job for its checkpoints, else the
        one that has the folder's own name."""
        kind = folder.relative_to(self._store.place).parts[0]
        return kind, folder.parent.name if kind == self._store.checkpoints.name else folder.name

    def _is_named(self, session: Session, folder: Path) -> bool:
        kind, row = self._row_of(folder)
        query = rows_keeping(kind)
        return session.scalar(query.where(query.selected_columns[0] == row)) is not None

    def _left_behind(self) -> dict[Path, Path]:
        """Folders of rows in the data folder, and where they belong."""
        old = ArtefactStore(self._store.root)
        places = {folder: self._store.artefact_path(folder.name) for folder in old.artefacts.glob("*/*")}
        places |= {folder: self._store.datasets / folder.name for folder in old.datasets.glob("*")}
        places |= {folder: self._store.kept_files / folder.name for folder in old.kept_files.glob("*")}
        with self._database.read() as session:
            return {folder: target for folder, target in places.items() if self._is_named(session, target)}

    def _identity(self) -> str:
        with self._database.read() as session:
            known = session.get(Setting, _IDENTITY)
            if known is not None:
                return known.value
        with self._database.write() as session:
            setting = session.get(Setting, _IDENTITY) or Setting(key=_IDENTITY, value=secrets.token_hex(16))
            session.add(setting)
            return setting.value


def rows_keeping(kind: str) -> Select[str]:
    """The ids of the rows that keep folders of a kind, whoever asks: what he may not see stays as well."""
    match kind:
        case "artefacts":
            query = select(Artefact.digest)
        case "datasets":
            query = select(Dataset.id)
        case "kept-files":
            query = documents.file_ids()
        case "checkpoints":
            query = jobs.with_checkpoints()
        case _:
            raise ValueError(f"the store has no folders of the kind {kind!r}")
    return query.execution_options(**{EVERYTHING: True})
