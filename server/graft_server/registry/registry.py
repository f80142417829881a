"""The registry: adapters, versions, datasets and jobs, with the files that belong to them.

The one way in for the rest of the server. Every method is one transaction; threads and processes may call at the
same time. Only records and paths leave it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from graft_client.schemas.jobs import JobEvent, JobProgress, JobState
from graft_client.schemas.limits import UNSET, Limits, LimitsChange
from graft_server.registry import adapters, audit, claims, datasets, documents, jobs, keys, limits, servers
from graft_server.registry.aliases import Aliases
from graft_server.registry.artefacts import ArtefactStore, Staged
from graft_server.registry.checkpoints import Checkpoints
from graft_server.registry.database import Database
from graft_server.registry.documents import Documents
from graft_server.registry.errors import ConflictError, NotFetchedError, UnknownError, storage_errors
from graft_server.registry.identity import server_id
from graft_server.registry.jobs import EventKind
from graft_server.registry.kept_files import KeptFiles
from graft_server.registry.models import Adapter, Dataset, Job, RouteRow, Setting, Version
from graft_server.registry.records import (
    AdapterRecord,
    AuditRecord,
    Claim,
    DatasetRecord,
    JobRecord,
    KeyRecord,
    Lineage,
    RouteRecord,
    VersionRecord,
)
from graft_server.registry.routes import Routes, refuse_routed, route_record
from graft_server.registry.sharing import Sharing, rows_keeping
from graft_server.registry.stores import open_store

#: Where earlier releases kept callers' files in the data folder.
_OLD_FILES = "files"


@dataclass(frozen=True, slots=True)
class RegistryCounts:
    """How much there is of each thing; ``jobs`` by state."""

    adapters: int
    versions: int
    datasets: int
    jobs: dict[str, int]


class Stored(Protocol):
    """What has files in the artefact store: where they are read, and their digest."""

    @property
    def path(self) -> Path | str: ...

    @property
    def digest(self) -> str: ...


class Registry:
    """See the module. Get one from ``Registry.open``."""

    def __init__(self, database: Database, store: ArtefactStore, server: str) -> None:
        self._database = database
        #: The name of this server, which its data folder keeps.
        self.server = server
        self._store = store
        #: What callers have the server keep.
        self.documents = Documents(database)
        self._sharing = Sharing(database, store)
        self.kept_files = KeptFiles(database, store, self._sharing, self.documents)
        self.aliases = Aliases(database, store)
        self.routes = Routes(database, store)
        self.checkpoints = Checkpoints(database, store, self._sharing)

    @classmethod
    def open(
        cls,
        data_dir: Path,
        url: str | None = None,
        artefacts_url: str | None = None,
        *,
        cache_bytes: int = 10 << 30,
    ) -> Registry:
        """Open the registry in ``data_dir``: create it, migrate it, and remove what a killed process left.

        ``url`` is the database's SQLAlchemy URL; without one it is an SQLite file in the folder. ``artefacts_url`` says
        where artefacts, datasets and kept files lie; without one that is the folder too. ``cache_bytes`` of an object
        store's are kept in the folder.

        Raises:
            InvalidDatabaseError, InvalidStoreError: a URL makes no sense.
            NewerDatabaseError: a newer release wrote the database.
            ConflictError: the folder holds files, but the database is new; or the store is another registry's.
            StoreUnavailableError: the store does not answer, and there are files to bring there.
            StorageFullError: no space is left.
        """
        root = data_dir.expanduser().resolve()
        store = open_store(root, artefacts_url, cache_bytes=cache_bytes)
        store.create()
        with store.lock():
            server = server_id(root)
        database = Database(url or f"sqlite:///{root / 'registry.db'}")
        registry = cls(database, store, server)
        try:
            with store.lock():
                # A new database beside old files knows none of them, and would have them all collected.
                if database.is_new() and store.holds_anything():
                    raise ConflictError(
                        f"{store.place} holds the files of another database than {database.name}: restore that "
                        "database, or use another folder"
                    )
                database.migrate()
            registry._sharing.open()
            registry.collect_garbage()
            registry.kept_files.adopt(root / _OLD_FILES)
            registry.kept_files.sweep()
        except BaseException:
            registry.close()
            raise
        return registry

    def close(self) -> None:
        """Close the connections. The registry can't be used afterwards."""
        self._store.close()
        self._database.close()

    # Files

    def files(self, record: Stored, *, wait: bool = True) -> AbstractContextManager[Path]:
        """Have the files of a version or a dataset in the folder at its ``path`` for the length of the block.

        Raises:
            NotFetchedError: they have to be fetched from the object store, and the caller does not ``wait``.
            CorruptArtefactError: they are gone there, or are not what was stored.
            StoreUnavailableError: the object store does not answer.
            StorageFullError: no space is left for them.
        """
        folder = Path(record.path)
        # What has no digest is not published, and lies where it was made.
        return self._store.held(folder, record.digest, wait=wait) if record.digest else nullcontext(folder)

    def fetch(self, missing: NotFetchedError) -> Future[None]:
        """Fetch what was missed; one fetch for all who miss it. The future has the errors of ``files``."""
        return self._store.fetch(missing.folder, missing.digest)

    # Adapters and versions

    def publish(
        self,
        name: str,
        folder: Path,
        lineage: Lineage,
        *,
        job_id: str | None = None,
        job_update: dict[str, Any] | None = None,
        claim: Claim | None = None,
    ) -> VersionRecord:
        """Store a copy of ``folder`` as the next version of an adapter.

        With ``job_id``, the job succeeds with this version in the same transaction, and ``job_update`` holds
        further arguments of ``update_job``. A job publishes once: a second call returns its version. See ``update_job``
        for ``claim``.

        Raises:
            InvalidNameError: no adapter can be called so.
            UnknownError: there is no such job.
            ConflictError: the adapter belongs to another task, a route has its name, the job is not at work, or what
                it published was deleted.
            LostClaimError: another server has taken the job over.
            RefusedArtefactError: the folder holds what is not stored.
            StorageFullError: no space is left; nothing was changed.
            StoreUnavailableError: the object store does not answer; nothing was changed.
        """
        adapters.check_name(name)
        if job_id is not None:
            lineage = replace(lineage, job=job_id)
            with self._database.read() as session:
                if published := self._published_by(session, job_id):
                    return published
        self._sharing.claim()
        with self._store.stage(folder) as staged:
            self._store.upload(staged, self._store.artefact_path(staged.digest))
            return self._publish(name, staged, lineage, job_id, job_update or {}, claim)

    def _publish(
        self,
        name: str,
        staged: Staged,
        lineage: Lineage,
        job_id: str | None,
        job_update: dict[str, Any],
        claim: Claim | None,
    ) -> VersionRecord:
        with self._store.placing(staged) as place, self._database.write() as session:
            # Asked again: another process may have published for this job in the meantime.
            if job_id is not None and (published := self._published_by(session, job_id)):
                return published
            adapters.check_free(session, name, lineage.task)
            version = adapters.add_version(session, name, staged, lineage)
            if claim is not None:
                claims.check(jobs.find(session, claim.job, lock=True), claim)
            if job_id is not None:
                job = jobs.find(session, job_id, lock=True)
                jobs.update(session, job, **job_update)
                jobs.succeed(session, job, f"{name}@{version.number}")
            place(self._store.artefact_path(staged.digest))
            return adapters.version_record(version, self._store)

    def _published_by(self, session: Session, job_id: str) -> VersionRecord | None:
        job = jobs.find(session, job_id)
        if job.version is None:
            return None
        try:
            version = adapters.find_version(session, *adapters.parse_ref(job.version))
        except UnknownError:
            raise ConflictError(f"job {job_id!r} has published {job.version}, which was deleted") from None
        return adapters.version_record(version, self._store)

    def adapter(self, name: str) -> AdapterRecord:
        """Raises:
        UnknownError: there is none, with the nearest name.
        """
        with self._database.read() as session:
            return adapters.adapter_record(adapters.find_adapter(session, name), self._store)

    def adapters(self, task: str | None = None) -> list[AdapterRecord]:
        """Every adapter, or those of one task, by name."""
        with self._database.read() as session:
            return [adapters.adapter_record(row, self._store) for row in adapters.list_adapters(session, task)]

    def check_free(self, name: str, task: str) -> None:
        """Whether an adapter of a task can have a name.

        Raises:
            ConflictError: the adapter exists and belongs to another task, or a route has the name.
        """
        with self._database.read() as session:
            adapters.check_free(session, name, task)

    def version(self, name: str, which: int | str | None = None) -> VersionRecord:
        """A version of an adapter by number or alias, the latest without either.

        Raises:
            UnknownError: there is none.
        """
        with self._database.read() as session:
            return adapters.version_record(adapters.find_version(session, name, which), self._store)

    def resolve(self, ref: str) -> VersionRecord:
        """The version that ``name`` (the latest), ``name@3`` or ``name@production`` stands for.

        Raises:
            UnknownError: there is none.
        """
        return self.version(*adapters.parse_ref(ref))

    def target(self, ref: str) -> VersionRecord | RouteRecord:
        """What a request names: a version, as ``resolve`` takes it, or a route.

        Raises:
            UnknownError: there is neither.
        """
        name, which = adapters.parse_ref(ref)
        with self._database.read() as session:
            version = adapters.seek_version(session, name, which)
            if version is not None:
                return adapters.version_record(version, self._store)
            row = session.get(RouteRow, name) if which is None else None
            if row is not None:
                return route_record(session, row, self._store)
            return adapters.version_record(adapters.find_version(session, name, which), self._store)

    def preferred(self, name: str, alias: str) -> VersionRecord:
        """What an alias of an adapter stands for, or the latest version where it stands for nothing.

        Raises:
            UnknownError: there is no such adapter.
        """
        with self._database.read() as session:
            version = adapters.seek_version(session, name, alias) or adapters.find_version(session, name, None)
            return adapters.version_record(version, self._store)

    def newest_engine_id(self) -> int:
        """The number of the version published last of all that are left; 0 where there is none."""
        with self._database.read() as session:
            return session.scalar(select(func.max(Version.engine_id))) or 0

    def described_after(self, engine_id: int, file: str) -> list[VersionRecord]:
        """The versions with a dataset, or with a file of this name, that were published after one, in that order."""
        with self._database.read() as session:
            rows = adapters.list_described(session, engine_id, file)
            return [adapters.version_record(row, self._store) for row in rows]

    def adapter_names(self) -> set[str]:
        """The names of all adapters."""
        with self._database.read() as session:
            return set(session.scalars(select(Adapter.name)))

    def latest_for_task(self, task: str) -> VersionRecord | None:
        """The version of a task that was published last."""
        with self._database.read() as session:
            version = adapters.latest_for_task(session, task)
            return None if version is None else adapters.version_record(version, self._store)

    def pin(self, name: str, number: int) -> VersionRecord:
        """Note that a version is to keep its slot in device memory.

        Raises:
            UnknownError: there is none.
        """
        return self._set_pinned(name, number, pinned=True)

    def unpin(self, name: str, number: int) -> VersionRecord:
        """Note that a version may leave its slot again; one that is not pinned is left as it is.

        Raises:
            UnknownError: there is none.
        """
        return self._set_pinned(name, number, pinned=False)

    def _set_pinned(self, name: str, number: int, *, pinned: bool) -> VersionRecord:
        with self._database.write() as session:
            version = adapters.find_version(session, name, number)
            version.pinned = pinned
            return adapters.version_record(version, self._store)

    def pinned_versions(self) -> list[VersionRecord]:
        """The versions that are pinned, those published first before the others."""
        with self._database.read() as session:
            return [adapters.version_record(version, self._store) for version in adapters.list_pinned(session)]

    def verify(self, version: VersionRecord) -> None:
        """Read a version's files again and compare them with what was published.

        Raises:
            CorruptArtefactError: they differ, or are gone.
        """
        self._store.verify(version.digest)

    def delete_adapter(self, name: str) -> None:
        """Delete an adapter with its versions and their files.

        Raises:
            UnknownError: there is none.
            ConflictError: an alias stands for one of its versions, a route needs it, or another server has requests
                for it.
        """
        with self._store.lock():
            with self._database.write() as session:
                adapter = adapters.find_adapter(session, name)
                refuse_routed(session, adapter.versions)
                servers.refuse_in_flight(session, self.server, adapter.versions)
                free = adapters.remove_adapter(session, adapter)
            self._remove_artefacts(free)

    def delete_version(self, name: str, number: int, *, unless_pinned: bool = False) -> None:
        """Delete a version with its files, and the adapter with its last version. The number is not used again.

        Raises:
            UnknownError: there is none.
            ConflictError: an alias stands for it, a route needs it, another server has requests for it, or it is
                pinned and ``unless_pinned``.
        """
        with self._store.lock():
            with self._database.write() as session:
                version = adapters.find_version(session, name, number)
                if unless_pinned and version.pinned:
                    raise ConflictError(f"{name}@{number} is pinned")
                refuse_routed(session, [version])
                servers.refuse_in_flight(session, self.server, [version])
                free = adapters.remove_version(session, version)
            self._remove_artefacts(free)

    def _remove_artefacts(self, digests: list[str]) -> None:
        folders = [self._store.artefact_path(digest) for digest in digests]
        for folder in folders:
            self._store.remove(folder)
        self._sharing.discard(folders)

    # Datasets

    def add_dataset(
        self,
        *,
        task: str,
        format: str,  # noqa: A002
        rows: int,
        bad_rows: int,
        folder: Path,
        order: Sequence[str] = (),
    ) -> DatasetRecord:
        """Store a copy of ``folder`` as a dataset. The same files for the same task are the same dataset.

        ``order`` names the files in the order in which they are read; without it they are read by name.

        Raises:
            RefusedArtefactError: the folder is empty or holds links or special files.
            StorageFullError: no space is left; nothing was changed.
            StoreUnavailableError: the object store does not answer; nothing was changed.
        """
        self._sharing.claim()
        with self._store.stage(folder, allow_pickles=True) as staged:
            files = datasets.in_order(staged.files, order)
            self._store.upload(staged, self._store.datasets / datasets.identify(task, files))
            with self._store.placing(staged) as place, self._database.write() as session:
                row = datasets.add(session, files, task=task, format=format, rows=rows, bad_rows=bad_rows)
                dataset = datasets.record(row, self._store)
                place(dataset.path)
                return dataset

    def dataset(self, id: str) -> DatasetRecord:  # noqa: A002
        """Raises:
        UnknownError: there is none.
        """
        with self._database.read() as session:
            return datasets.record(datasets.find(session, id), self._store)

    def datasets(self, task: str | None = None) -> list[DatasetRecord]:
        """Every dataset, or those of one task, the newest first."""
        with self._database.read() as session:
            return [datasets.record(row, self._store) for row in datasets.list_all(session, task)]

    def delete_dataset(self, id: str) -> None:  # noqa: A002
        """Delete a dataset and its files.

        Raises:
            UnknownError: there is none.
            ConflictError: a job that is not finished uses it.
        """
        with self._store.lock():
            with self._database.write() as session:
                datasets.remove(session, id)
            folder = self._store.datasets / id
            self._store.remove(folder)
            self._sharing.discard([folder])

    # Jobs

    def create_job(
        self,
        *,
        task: str,
        adapter: str,
        dataset: str,
        method: str,
        options: dict[str, Any],
        request: dict[str, Any] | None = None,
    ) -> JobRecord:
        """Queue a job and make its folder; with it comes a document of what was asked for, ``request``.

        Raises:
            InvalidNameError: no adapter can be called so.
            UnknownError: the dataset does not exist.
            ConflictError: the dataset or the adapter belongs to another task.
        """
        with self._store.lock(), self._database.write() as session:
            row = jobs.create(session, task=task, adapter=adapter, dataset=dataset, method=method, options=options)
            job = jobs.record(row, self._store)
            if request is not None:
                documents.insert(session, "fine-tuning", request, identity=documents.job_document(job.id))
            with storage_errors(self._store.root):
                job.folder.mkdir()
            return job

    def job(self, id: str) -> JobRecord:  # noqa: A002
        """Raises:
        UnknownError: there is none.
        """
        with self._database.read() as session:
            return jobs.record(jobs.find(session, id), self._store)

    def jobs(self, state: JobState | None = None, limit: int = 100) -> list[JobRecord]:
        """The newest jobs first."""
        with self._database.read() as session:
            return [jobs.record(row, self._store) for row in jobs.list_all(session, state, limit)]

    def claim_job(self, *, lease: float = 30.0, take_over: bool = True) -> JobRecord | None:
        """Set the job that has waited longest to running, for this server alone, for ``lease`` seconds or until
        ``renew_claims``. Jobs whose dataset lies in another server's data folder are passed over.

        With ``take_over``, jobs of servers that did not renew their claims are queued again first.
        """
        with self._database.read() as session:
            if not claims.anything_to_do(session, take_over=take_over):
                return None
        with self._database.write() as session:
            row = claims.take(
                session,
                self.server,
                seconds=lease,
                readable=lambda dataset: self._store.reads(self._store.datasets / dataset),
                take_over=take_over,
            )
            return None if row is None else jobs.record(row, self._store)

    def renew_claims(self, held: Sequence[Claim], *, lease: float) -> list[JobRecord]:
        """Keep jobs for ``lease`` more seconds; returns those whose claims hold, also behind their time if nobody has
        taken them over."""
        with self._database.write() as session:
            return [jobs.record(row, self._store) for row in claims.renew(session, held, seconds=lease)]

    def update_job(
        self,
        id: str,  # noqa: A002
        *,
        state: JobState | None = None,
        progress: JobProgress | None = None,
        error: str | None = None,
        options: dict[str, Any] | None = None,
        train_seconds: float | None = None,
        train_tokens: int | None = None,
        claim: Claim | None = None,
    ) -> JobRecord:
        """Change what is given, and append an event where the state changes. Who works at the job gives its ``claim``.

        ``error`` is kept until it is replaced, or until the job is queued again. A job succeeds through ``publish``
        and a finished one is queued again through ``resume_job``; neither can be set here.

        Raises:
            UnknownError: there is none.
            ConflictError: the job can't go to that state.
            LostClaimError: another server has taken it over.
        """
        with self._job(id, claim) as (session, row):
            jobs.update(
                session,
                row,
                state=state,
                progress=progress,
                error=error,
                options=options,
                train_seconds=train_seconds,
                train_tokens=train_tokens,
            )
            return jobs.record(row, self._store)

    def request_cancel(self, id: str) -> bool:  # noqa: A002
        """Cancel a queued job at once; ask one at work to stop, through ``cancel_requested``. Whether that ended it.

        Raises:
            UnknownError: there is none.
            ConflictError: the job has succeeded or failed.
        """
        with self._job(id) as (session, row):
            return jobs.request_cancel(session, row)

    def resume_job(self, id: str) -> JobRecord:  # noqa: A002
        """Queue a failed or cancelled job again; its folder, with its checkpoints, is kept.

        Raises:
            UnknownError: there is none, or its dataset was deleted.
            ConflictError: the job is not failed or cancelled.
        """
        with self._job(id) as (session, row):
            jobs.resume(session, row)
            return jobs.record(row, self._store)

    def recover_jobs(self) -> list[JobRecord]:
        """Queue again the jobs that were at work here when this server died. Call it before any worker starts."""
        with self._database.write() as session:
            return [jobs.record(row, self._store) for row in claims.recover(session, self.server)]

    def add_event(self, job_id: str, kind: EventKind, data: dict[str, Any], *, claim: Claim | None = None) -> JobEvent:
        """Append to a job's history; see ``update_job`` for ``claim``.

        Raises:
            UnknownError: there is no such job.
            LostClaimError: another server has taken it over.
        """
        with self._job(job_id, claim) as (session, row):
            return jobs.event_record(jobs.append_event(session, row, kind, data))

    def recent_events(
        self, job_id: str, *, before: int | None = None, limit: int | None = None, kind: EventKind | None = None
    ) -> list[JobEvent]:
        """The newest entries of a job's history first: before one, and of one kind, where they are named.

        Raises:
            UnknownError: there is no such job.
        """
        with self._database.read() as session:
            rows = jobs.recent_events(session, jobs.find(session, job_id), before, limit, kind)
            return [jobs.event_record(row) for row in rows]

    def events(self, job_id: str, after: int = 0, limit: int = 1000) -> list[JobEvent]:
        """A job's history behind the entry ``after``.

        Raises:
            UnknownError: there is no such job.
        """
        with self._database.read() as session:
            rows = jobs.events(session, jobs.find(session, job_id), after, limit)
            return [jobs.event_record(row) for row in rows]

    @contextmanager
    def _job(self, identity: str, claim: Claim | None = None) -> Iterator[tuple[Session, Job]]:
        with self._database.write() as session:
            row = jobs.find(session, identity, lock=True)
            claims.check(row, claim)
            yield session, row

    # Keys and the log of changes

    def create_key(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        adapters: Sequence[str] = (),
        tenant: str | None = None,
        expires_at: datetime | None = None,
        limits: Limits = UNSET,
    ) -> tuple[KeyRecord, str]:
        """Make a key; returns its record, and the key itself, which can't be had again.

        Raises:
            ConflictError: there is no key yet, and this one could make no others.
        """
        with self._database.write() as session:
            row, secret = keys.create(
                session, name, scopes, adapters=adapters, tenant=tenant, expires_at=expires_at, granted=limits
            )
            return keys.record(row), secret

    def key(self, id: str) -> KeyRecord | None:  # noqa: A002
        """A key by the id that it begins with."""
        with self._database.read() as session:
            row = keys.get(session, id)
            return None if row is None else keys.record(row)

    def keys(self) -> list[KeyRecord]:
        """Every key, the oldest first, revoked ones included."""
        with self._database.read() as session:
            return [keys.record(row) for row in keys.list_all(session)]

    def has_keys(self) -> bool:
        """Whether there ever was a key."""
        with self._database.read() as session:
            return keys.any_exist(session)

    def revoke_key(self, id: str) -> KeyRecord:  # noqa: A002
        """End a key. One that is revoked already is left as it is.

        Raises:
            UnknownError: there is none.
            ConflictError: it is the last that can make others.
        """
        with self._database.write() as session:
            return keys.record(keys.revoke(session, id))

    def limit_key(self, id: str, change: LimitsChange) -> KeyRecord:  # noqa: A002
        """Change how much a key may ask.

        Raises:
            UnknownError: there is none.
        """
        with self._database.write() as session:
            row = keys.find(session, id)
            row.limits = limits.column(change.applied(limits.of_row(row.limits)))
            return keys.record(row)

    def limit_adapter(self, name: str, change: LimitsChange) -> AdapterRecord:
        """Change how much an adapter may be asked, by all keys together.

        Raises:
            UnknownError: there is none.
        """
        with self._database.write() as session:
            row = adapters.find_adapter(session, name)
            row.limits = limits.column(change.applied(limits.of_row(row.limits)))
            return adapters.adapter_record(row, self._store)

    def adapter_limits(self) -> dict[str, Limits]:
        """The limits of all adapters that have any of their own, by name."""
        with self._database.read() as session:
            return limits.of_adapters(session)

    def audit(self, *, target: str | None = None, before: int | None = None, limit: int = 100) -> list[AuditRecord]:
        """The newest changes first; of one target, and before an entry."""
        with self._database.read() as session:
            return [audit.record(row) for row in audit.entries(session, target, before, limit)]

    def newest_change(self) -> int:
        """The number of the last change of anything by any server: as cheap as a question can be."""
        with self._database.read() as session:
            return audit.newest(session)

    @property
    def has_others(self) -> bool:
        """Whether other servers may use the database too; an SQLite file is one server's."""
        return self._database.is_shared

    @property
    def shares_files(self) -> bool:
        """Whether artefacts and datasets lie where other servers find them."""
        return self._store.is_shared

    def report_in_flight(self, refs: Iterable[str]) -> None:
        """Tell other servers the versions that this one has requests for; believed for half a minute."""
        with self._database.write() as session:
            servers.report(session, self.server, refs)

    def in_flight_elsewhere(self) -> set[str]:
        """The versions (``name@N``) that other servers have requests for."""
        with self._database.read() as session:
            return servers.in_flight_elsewhere(session, self.server)

    def other_servers(self) -> set[str]:
        """The names of the other servers of this registry that are there."""
        with self._database.read() as session:
            return servers.others(session, self.server)

    def leave(self) -> None:
        """Tell other servers that this one ends."""
        with self._database.write() as session:
            servers.leave(session, self.server)

    def take_turn(self, name: str, every: timedelta) -> bool:
        """Whether this server is to do ``name`` now, which one of all does once within ``every``."""
        with self._database.write() as session:
            return servers.take_turn(session, name, every)

    # Everything else

    def counts(self) -> RegistryCounts:
        """How much there is of each thing."""
        with self._database.read() as session:
            return RegistryCounts(
                adapters=session.scalar(select(func.count()).select_from(Adapter)) or 0,
                versions=session.scalar(select(func.count()).select_from(Version)) or 0,
                datasets=session.scalar(select(func.count()).select_from(Dataset)) or 0,
                jobs=jobs.count_by_state(session),
            )

    def get_setting(self, key: str) -> str | None:
        """A value kept with the registry."""
        with self._database.read() as session:
            setting = session.get(Setting, key)
            return None if setting is None else setting.value

    def set_setting(self, key: str, value: str) -> None:
        """Keep a value with the registry."""
        with self._database.write() as session:
            session.merge(Setting(key=key, value=value))

    def collect_garbage(self, *, dry_run: bool = False) -> list[Path]:
        """Remove the folders that no row names and the staging of processes that are gone; returns them. Those in an
        object store are left to ``collect_objects``."""
        with self._store.lock():
            with self._database.read() as session:
                orphans = self._store.orphans(
                    digests=set(session.scalars(rows_keeping("artefacts"))),
                    datasets=set(session.scalars(rows_keeping("datasets"))),
                    files=set(session.scalars(rows_keeping("kept-files"))),
                    jobs=set(session.scalars(select(Job.id))),
                    checkpointed=set(session.scalars(rows_keeping("checkpoints"))),
                )
            if not dry_run:
                for folder in orphans:
                    self._store.remove(folder)
        return orphans

    def collect_objects(self, *, dry_run: bool = False) -> list[Path]:
        """Remove from the object store what no row names and nothing was written to for a day; returns it.

        Raises:
            StoreUnavailableError: the object store does not answer.
        """
        return self._sharing.collect(dry_run=dry_run)
