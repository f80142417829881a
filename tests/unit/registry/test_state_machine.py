"""Random operations against a model in plain dictionaries."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from graft_client.schemas.jobs import JobState
from graft_server.registry import ConflictError, Lineage, Registry, UnknownError
from support.postgresql import PostgreSQL

TASKS = {"a": "translation", "b": "translation", "c": "chat"}
WORKING = (JobState.running, JobState.evaluating)
names = st.sampled_from(sorted(TASKS))
contents = st.sampled_from(["1", "2", "3"])


class RegistryMachine(RuleBasedStateMachine):
    datasets = Bundle("datasets")
    jobs = Bundle("jobs")
    #: The URL of an empty database; ``None`` is SQLite in the data folder.
    new_database: Callable[[], str | None] = staticmethod(lambda: None)

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.url = self.new_database()
        self.registry = Registry.open(self.root / "data", self.url)
        self.versions: dict[str, tuple[int, str]] = {}
        self.pinned: set[str] = set()
        self.used_engine_ids: set[int] = set()
        self.used_refs: set[str] = set()
        self.states: dict[str, JobState] = {}
        self.queue: list[str] = []
        self.places: dict[str, int] = {}
        self.next_place = itertools.count()
        self.live_datasets: dict[str, str] = {}
        self.dataset_of: dict[str, str] = {}
        self.adapter_of: dict[str, str] = {}

    def teardown(self) -> None:
        self.registry.close()
        shutil.rmtree(self.root)

    def folder(self, content: str) -> Path:
        folder = self.root / f"content-{content}"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_model.safetensors").write_text(content)
        return folder

    def published(self, version, content: str) -> None:
        assert version.engine_id not in self.used_engine_ids
        assert version.engine_id > max(self.used_engine_ids, default=0)
        assert version.ref not in self.used_refs
        self.used_engine_ids.add(version.engine_id)
        self.used_refs.add(version.ref)
        self.versions[version.ref] = (version.engine_id, content)

    def lineage(self, name: str) -> Lineage:
        return Lineage(task=TASKS[name], method="lora", base_model="b", base_fingerprint="f")

    @rule(name=names, content=contents)
    def publish(self, name: str, content: str) -> None:
        version = self.registry.publish(name, self.folder(content), self.lineage(name))
        self.published(version, content)

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def delete_version(self, data) -> None:
        ref = data.draw(st.sampled_from(sorted(self.versions)))
        name, _, number = ref.partition("@")
        self.registry.delete_version(name, int(number))
        del self.versions[ref]
        self.pinned.discard(ref)

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def delete_adapter(self, data) -> None:
        name = data.draw(st.sampled_from(sorted({ref.partition("@")[0] for ref in self.versions})))
        self.registry.delete_adapter(name)
        self.versions = {ref: kept for ref, kept in self.versions.items() if not ref.startswith(f"{name}@")}
        self.pinned &= self.versions.keys()

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data, pinned: bool) -> None:
        ref = data.draw(st.sampled_from(sorted(self.versions)))
        name, _, number = ref.partition("@")
        change = self.registry.pin if pinned else self.registry.unpin
        assert change(name, int(number)).pinned is pinned
        self.pinned = self.pinned | {ref} if pinned else self.pinned - {ref}

    @rule(target=datasets, task=st.sampled_from(sorted(set(TASKS.values()))), content=contents)
    def add_dataset(self, task: str, content: str):
        stored = self.registry.add_dataset(task=task, format="jsonl", rows=1, bad_rows=0, folder=self.folder(content))
        known = stored.id in self.live_datasets
        self.live_datasets[stored.id] = task
        return multiple() if known else stored.id

    @rule(dataset=consumes(datasets))
    def delete_dataset(self, dataset: str) -> None:
        in_use = any(self.dataset_of[job] == dataset and not state.finished for job, state in self.states.items())
        try:
            self.registry.delete_dataset(dataset)
        except ConflictError:
            assert in_use
        else:
            assert not in_use
            del self.live_datasets[dataset]

    @rule(target=jobs, dataset=datasets)
    def create_job(self, dataset: str):
        if dataset not in self.live_datasets:
            return multiple()
        task = self.live_datasets[dataset]
        name = next(name for name in sorted(TASKS) if TASKS[name] == task)
        job = self.registry.create_job(task=task, adapter=name, dataset=dataset, method="lora", options={})
        assert job.id not in self.states
        self.states[job.id] = JobState.queued
        self.dataset_of[job.id] = dataset
        self.adapter_of[job.id] = name
        self.enqueue(job.id)
        return job.id

    @rule()
    def claim(self) -> None:
        job = self.registry.claim_job()
        assert (job.id if job else None) == (self.queue[0] if self.queue else None)
        if job:
            self.states[self.queue.pop(0)] = JobState.running

    @rule(job=jobs, content=contents)
    def finish(self, job: str, content: str) -> None:
        name = self.adapter_of[job]
        before = self.states[job]
        try:
            version = self.registry.publish(name, self.folder(content), self.lineage(name), job_id=job)
        except ConflictError:
            published = self.registry.job(job).version
            assert before not in WORKING
            assert before is not JobState.succeeded or published not in self.versions
            return
        if before is JobState.succeeded:
            assert version.engine_id == self.versions[version.ref][0]
            return
        assert before in WORKING
        self.published(version, content)
        self.states[job] = JobState.succeeded

    @rule(job=jobs, target_state=st.sampled_from(JobState))
    def update(self, job: str, target_state: JobState) -> None:
        before = self.states[job]
        try:
            self.registry.update_job(job, state=target_state)
        except ConflictError:
            return
        assert target_state is before or not before.finished
        assert target_state is before or target_state is not JobState.succeeded
        self.states[job] = target_state
        if before is JobState.queued and target_state is not JobState.queued:
            self.queue.remove(job)
        if target_state is JobState.queued and before is not JobState.queued:
            # It waits where it waited before.
            self.queue = sorted([*self.queue, job], key=self.places.__getitem__)

    @rule(job=jobs)
    def resume(self, job: str) -> None:
        resumable = self.states[job] in (JobState.failed, JobState.cancelled)
        has_data = self.dataset_of[job] in self.live_datasets
        try:
            self.registry.resume_job(job)
        except (ConflictError, UnknownError):
            assert not (resumable and has_data)
        else:
            assert resumable
            assert has_data
            self.states[job] = JobState.queued
            self.enqueue(job)

    def enqueue(self, job: str) -> None:
        self.places[job] = next(self.next_place)
        self.queue.append(job)

    @rule(crashed=st.booleans())
    def reopen(self, crashed: bool) -> None:
        self.registry.close()
        self.registry = Registry.open(self.root / "data", self.url)
        if crashed:
            self.registry.recover_jobs()
            lost = [job for job, state in self.states.items() if state in WORKING]
            self.states |= dict.fromkeys(lost, JobState.queued)
            self.queue = sorted([*self.queue, *lost], key=self.places.__getitem__)

    @invariant()
    def nothing_is_lost_and_nothing_is_left(self) -> None:
        found = {v.ref: v for adapter in self.registry.adapters() for v in adapter.versions}
        assert {ref: v.engine_id for ref, v in found.items()} == {ref: e for ref, (e, _) in self.versions.items()}
        assert {version.ref for version in self.registry.pinned_versions()} == self.pinned
        for ref, version in found.items():
            assert version.pinned is (ref in self.pinned)
            self.registry.verify(version)
            assert (version.path / "adapter_model.safetensors").read_text() == self.versions[ref][1]
        on_disk = {folder.name for folder in (self.root / "data" / "artefacts").glob("*/*")}
        assert on_disk == {version.digest for version in found.values()}
        assert self.registry.collect_garbage(dry_run=True) == []
        assert {job.id: job.state for job in self.registry.jobs(limit=1000)} == self.states
        assert {dataset.id for dataset in self.registry.datasets()} == set(self.live_datasets)


_SETTINGS = settings(max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))


def test_sqlite() -> None:
    run_state_machine_as_test(RegistryMachine, settings=_SETTINGS)


def test_postgresql(postgres: PostgreSQL) -> None:
    class OnPostgreSQL(RegistryMachine):
        new_database = staticmethod(postgres.new_database)

    run_state_machine_as_test(OnPostgreSQL, settings=settings(_SETTINGS, max_examples=5))
