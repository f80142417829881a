"""Random operations on two servers of one registry, against a model in plain dictionaries."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
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

from graft_client.schemas.jobs import JobProgress, JobState
from graft_client.schemas.routes import RouteSpec
from graft_server.registry import ConflictError, Lineage, Registry, UnknownError
from graft_server.registry.errors import LostClaimError
from graft_server.registry.records import Claim
from support.postgresql import PostgreSQL

TASKS = {"a": "translation", "b": "translation", "c": "chat"}
WORKING = (JobState.running, JobState.evaluating)
SERVERS = ("a", "b")
names = st.sampled_from(sorted(TASKS))
contents = st.sampled_from(["1", "2", "3"])
aliases = st.sampled_from(["production", "staging"])


class RegistryMachine(RuleBasedStateMachine):
    datasets = Bundle("datasets")
    jobs = Bundle("jobs")
    #: The URL of an empty database; ``None`` is SQLite.
    new_database: Callable[[], str | None] = staticmethod(lambda: None)

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.url = self.new_database() or f"sqlite:///{self.root / 'registry.db'}"
        self.servers = {name: self.open(name) for name in SERVERS}
        #: The one that is told what comes next.
        self.at = SERVERS[0]
        self.versions: dict[str, tuple[int, str]] = {}
        self.pinned: set[str] = set()
        #: What an alias stood for, one after the other, the present last.
        self.places: dict[tuple[str, str], list[int]] = {}
        self.moves: dict[str, int] = {}
        #: What each route leads to.
        self.routes: dict[str, tuple[str, ...]] = {}
        self.revisions: dict[str, int] = {}
        #: Of routes that were deleted.
        self.last_revisions: dict[str, int] = {}
        self.used_engine_ids: set[int] = set()
        self.used_refs: set[str] = set()
        self.states: dict[str, JobState] = {}
        self.queue: list[str] = []
        self.turns: dict[str, int] = {}
        self.next_place = itertools.count()
        self.live_datasets: dict[str, str] = {}
        self.dataset_of: dict[str, str] = {}
        self.adapter_of: dict[str, str] = {}
        #: Every claim there was, and the job's last one while it is at work; ``overdue`` are not renewed in time.
        self.all_claims: list[Claim] = []
        self.claims: dict[str, Claim | None] = {}
        self.overdue: set[Claim] = set()
        self.attempts: dict[str, int] = {}

    def open(self, name: str) -> Registry:
        return Registry.open(self.root / name, self.url, (self.root / "shared").as_uri())

    @property
    def registry(self) -> Registry:
        return self.servers[self.at]

    def teardown(self) -> None:
        for registry in self.servers.values():
            registry.close()
        shutil.rmtree(self.root)

    @rule(name=st.sampled_from(SERVERS))
    def turn_to(self, name: str) -> None:
        self.at = name

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
        try:
            self.registry.delete_version(name, int(number))
        except ConflictError:
            assert ref in self.aliased() | self.routed()
            return
        assert ref not in self.aliased() | self.routed()
        del self.versions[ref]
        self.pinned.discard(ref)

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def delete_adapter(self, data) -> None:
        name = data.draw(st.sampled_from(sorted({ref.partition("@")[0] for ref in self.versions})))
        try:
            self.registry.delete_adapter(name)
        except ConflictError:
            assert any(ref.startswith(f"{name}@") for ref in self.aliased() | self.routed())
            return
        assert not any(ref.startswith(f"{name}@") for ref in self.aliased() | self.routed())
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

    def routed(self) -> set[str]:
        return {ref for refs in self.routes.values() for ref in refs}

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), name=st.sampled_from(["r", "s"]), stale=st.booleans())
    def set_route(self, data, name: str, stale: bool) -> None:
        refs = data.draw(st.lists(st.sampled_from(sorted(self.versions)), min_size=1, max_size=2, unique=True))
        spec = RouteSpec.model_validate({"targets": [{"ref": ref, "weight": 100 / len(refs)} for ref in refs]})
        seen = self.revisions.get(name, 0)
        one_task = len({TASKS[ref.partition("@")[0]] for ref in refs}) == 1
        try:
            made = self.registry.routes.set(name, spec, who="ada", revision=seen + stale)
        except ConflictError:
            assert stale or not one_task
            return
        assert one_task
        assert not stale
        # One that is made again goes on counting.
        assert made.revision == (seen or self.last_revisions.get(name, 0)) + 1
        self.routes[name] = tuple(refs)
        self.revisions[name] = made.revision

    @precondition(lambda self: self.routes)
    @rule(data=st.data())
    def trip(self, data) -> None:
        name = data.draw(st.sampled_from(sorted(self.routes)))
        if len(self.routes[name]) < 2:
            return
        heaviest, canary = self.routes[name]
        tripped = self.registry.routes.trip(name, canary, revision=self.revisions[name], why="failed")
        assert {target.ref: target.weight for target in tripped.spec.targets} == {heaviest: 100, canary: 0}
        self.revisions[name] += 1

    @precondition(lambda self: self.routes)
    @rule(data=st.data())
    def delete_route(self, data) -> None:
        name = data.draw(st.sampled_from(sorted(self.routes)))
        self.registry.routes.delete(name, who="ada")
        del self.routes[name]
        self.last_revisions[name] = self.revisions.pop(name)

    def aliased(self) -> set[str]:
        return {f"{name}@{places[-1]}" for (name, _), places in self.places.items()}

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), alias=aliases, stale=st.booleans())
    def promote(self, data, alias: str, stale: bool) -> None:
        ref = data.draw(st.sampled_from(sorted(self.versions)))
        name, number = ref.partition("@")[0], int(ref.partition("@")[2])
        seen = self.registry.aliases.get(name, alias)
        places = self.places.get((name, alias), [])
        assert (seen.version.version if seen else None) == (places[-1] if places else None)
        if stale:
            # As if somebody else had moved it in the meantime.
            seen = replace(seen, revision=seen.revision - 1) if seen else None
        try:
            self.registry.aliases.promote(name, alias, number, seen=seen, who="ada")
        except ConflictError:
            assert places
            assert stale or places[-1] == number
            return
        assert not (stale and places)
        self.places[(name, alias)] = [*places, number]
        self.moves[name] = self.moves.get(name, 0) + 1

    @precondition(lambda self: self.versions)
    @rule(name=names, alias=aliases)
    def rollback(self, name: str, alias: str) -> None:
        places = self.places.get((name, alias), [])
        earlier = [number for number in places[:-1] if f"{name}@{number}" in self.versions and number != places[-1]]
        try:
            event = self.registry.aliases.rollback(name, alias, who="bo")
        except (ConflictError, UnknownError):
            assert not earlier
            return
        assert event.version == earlier[-1]
        while places[-1] != event.version:
            places.pop()
        self.moves[name] += 1

    @rule(data=st.data())
    @precondition(lambda self: self.places)
    def remove_alias(self, data) -> None:
        name, alias = data.draw(st.sampled_from(sorted(self.places)))
        self.registry.aliases.remove(name, alias, who="ada")
        del self.places[(name, alias)]
        self.moves[name] += 1

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

    @rule(overdue=st.booleans(), take_over=st.booleans())
    def claim(self, overdue: bool, take_over: bool) -> None:
        if take_over:
            self.back_into_the_queue(
                job for job, claim in self.claims.items() if self.states[job] in WORKING and claim in self.overdue
            )
        job = self.registry.claim_job(lease=-1 if overdue else 1000, take_over=take_over)
        assert (job.id if job else None) == (self.queue[0] if self.queue else None)
        if job:
            self.states[self.queue.pop(0)] = JobState.running
            self.attempts[job.id] = self.attempts.get(job.id, 0) + 1
            assert job.claim is not None
            assert job.claim.number == self.attempts[job.id]
            assert job.claim not in self.all_claims
            self.all_claims.append(job.claim)
            self.claims[job.id] = job.claim
            if overdue:
                self.overdue.add(job.claim)

    def back_into_the_queue(self, jobs: Iterable[str]) -> None:
        """The jobs of servers that are gone wait where they waited before."""
        lost = list(jobs)
        self.states |= dict.fromkeys(lost, JobState.queued)
        self.claims |= dict.fromkeys(lost)
        self.queue = sorted([*self.queue, *lost], key=self.turns.__getitem__)

    def holds(self, claim: Claim) -> bool:
        return self.states[claim.job] in WORKING and self.claims.get(claim.job) == claim

    @precondition(lambda self: self.all_claims)
    @rule(data=st.data())
    def renew(self, data) -> None:
        claim = data.draw(st.sampled_from(self.all_claims))
        held = self.registry.renew_claims([claim], lease=1000)
        assert [job.id for job in held] == ([claim.job] if self.holds(claim) else [])
        if held:
            self.overdue.discard(claim)

    @precondition(lambda self: self.all_claims)
    @rule(data=st.data(), step=st.integers(0, 9))
    def work(self, data, step: int) -> None:
        claim = data.draw(st.sampled_from(self.all_claims))
        try:
            done = self.registry.update_job(claim.job, progress=JobProgress(step=step), claim=claim)
        except LostClaimError:
            assert not self.holds(claim)
        else:
            assert self.holds(claim)
            assert done.progress.step == step

    @precondition(lambda self: self.all_claims)
    @rule(data=st.data(), content=contents)
    def finish_claimed(self, data, content: str) -> None:
        claim = data.draw(st.sampled_from(self.all_claims))
        if self.holds(claim):
            self.finish(claim.job, content, claim)
        elif self.states[claim.job] is not JobState.succeeded:
            name = self.adapter_of[claim.job]
            with pytest.raises(LostClaimError):
                self.registry.publish(name, self.folder(content), self.lineage(name), job_id=claim.job, claim=claim)

    @rule(job=jobs, content=contents)
    def finish_without_claim(self, job: str, content: str) -> None:
        self.finish(job, content, None)

    def finish(self, job: str, content: str, claim: Claim | None) -> None:
        name = self.adapter_of[job]
        before = self.states[job]
        try:
            version = self.registry.publish(name, self.folder(content), self.lineage(name), job_id=job, claim=claim)
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
        self.claims[job] = None

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
        if target_state not in WORKING:
            self.claims[job] = None
        if before is JobState.queued and target_state is not JobState.queued:
            self.queue.remove(job)
        if target_state is JobState.queued and before is not JobState.queued:
            # It waits where it waited before.
            self.queue = sorted([*self.queue, job], key=self.turns.__getitem__)

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
        self.turns[job] = next(self.next_place)
        self.queue.append(job)

    @rule(crashed=st.booleans())
    def reopen(self, crashed: bool) -> None:
        name = self.registry.server
        self.registry.close()
        self.servers[self.at] = self.open(self.at)
        assert self.registry.server == name
        if crashed:
            self.registry.recover_jobs()
            at_work = [job for job, state in self.states.items() if state in WORKING]
            claims = {job: self.claims.get(job) for job in at_work}
            self.back_into_the_queue(job for job, claim in claims.items() if claim is None or claim.server == name)

    @rule()
    def collect_garbage(self) -> None:
        assert self.registry.collect_garbage() == []

    @invariant()
    def both_servers_see_the_same(self) -> None:
        at = self.at
        for self.at in SERVERS:
            self.nothing_is_lost_and_nothing_is_left()
        self.at = at

    def nothing_is_lost_and_nothing_is_left(self) -> None:
        found = {v.ref: v for adapter in self.registry.adapters() for v in adapter.versions}
        assert {ref: v.engine_id for ref, v in found.items()} == {ref: e for ref, (e, _) in self.versions.items()}
        assert {version.ref for version in self.registry.pinned_versions()} == self.pinned
        for ref, version in found.items():
            assert version.pinned is (ref in self.pinned)
            self.registry.verify(version)
            assert (version.path / "adapter_model.safetensors").read_text() == self.versions[ref][1]
        for (name, alias), places in self.places.items():
            assert self.registry.resolve(f"{name}@{alias}").version == places[-1]
        in_place = {(record.name, alias) for record in self.registry.adapters() for alias in record.aliases}
        assert in_place == self.places.keys()
        assert {route.name: tuple(t.ref for t in route.spec.targets) for route in self.registry.routes.all()} == (
            self.routes
        )
        for name in self.routes:
            assert self.registry.routes.get(name).revision == self.revisions[name]
            assert set(self.registry.routes.get(name).versions) == set(self.routes[name])
        for name, moves in self.moves.items():
            assert [event.seq for event in self.registry.aliases.history(name)] == list(range(moves, 0, -1))
        on_disk = {folder.name for folder in (self.root / "shared" / "artefacts").glob("*/*")}
        assert on_disk == {version.digest for version in found.values()}
        assert self.registry.collect_garbage(dry_run=True) == []
        assert {job.id: job.state for job in self.registry.jobs(limit=1000)} == self.states
        assert {job.id: job.claim for job in self.registry.jobs(limit=1000) if job.claim} == {
            job: claim for job, claim in self.claims.items() if claim is not None
        }
        assert {dataset.id for dataset in self.registry.datasets()} == set(self.live_datasets)


_SETTINGS = settings(max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))


def test_sqlite() -> None:
    run_state_machine_as_test(RegistryMachine, settings=_SETTINGS)


def test_postgresql(postgres: PostgreSQL) -> None:
    class OnPostgreSQL(RegistryMachine):
        new_database = staticmethod(postgres.new_database)

    run_state_machine_as_test(OnPostgreSQL, settings=settings(_SETTINGS, max_examples=5))
