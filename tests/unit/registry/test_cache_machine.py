"""The cache against a model: whatever is held, read, deleted and published again, in whatever order."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import fsspec
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from graft_server.registry.artefacts import Staged
from graft_server.registry.cache import CachedStore
from graft_server.registry.objects import ObjectStore
from support.processes import eventually

KIB = 1 << 10
#: Sizes of the folders, in KiB; the budget is 4.
SIZES = (1, 1, 2, 2, 3)
BUDGET = 4 * KIB

numbers = strategies.integers(0, len(SIZES) - 1)


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.url = f"memory://{secrets.token_hex(8)}"
        self.objects = ObjectStore(self.url)
        self.store = self.opened()
        self.held: list[tuple[int, ExitStack]] = []
        self.stored: dict[int, str] = {}
        for number in range(len(SIZES)):
            self.publish(number)

    def opened(self) -> CachedStore:
        store = CachedStore(self.root / "data", self.objects, budget=BUDGET)
        store.create()
        return store

    def path(self, number: int) -> Path:
        return self.store.artefact_path(self.stored[number])

    @rule(number=numbers)
    def publish(self, number: int) -> None:
        source = self.root / f"source{number}"
        source.mkdir(exist_ok=True)
        (source / "weights").write_bytes(bytes([number]) * SIZES[number] * KIB)
        with self.store.stage(source) as staged:
            target = self.place(staged)
        self.stored[number] = target.name

    def place(self, staged: Staged) -> Path:
        target = self.store.artefact_path(staged.digest)
        self.store.upload(staged, target)
        with self.store.placing(staged) as place:
            place(target)
        return target

    @rule(number=numbers)
    def hold(self, number: int) -> None:
        stack = ExitStack()
        stack.enter_context(self.store.held(self.path(number), self.stored[number]))
        self.held.append((number, stack))

    @rule(which=strategies.integers(0, 20))
    def let_go(self, which: int) -> None:
        if self.held:
            self.held.pop(which % len(self.held))[1].close()

    @rule(number=numbers)
    def read(self, number: int) -> None:
        with self.store.held(self.path(number), self.stored[number]) as folder:
            assert (folder / "weights").read_bytes() == bytes([number]) * SIZES[number] * KIB

    @rule(number=numbers)
    def tidy_up(self, number: int) -> None:
        """Somebody deletes a folder of the cache."""
        if number not in {each for each, _ in self.held}:
            shutil.rmtree(self.path(number), ignore_errors=True)

    @rule()
    def restart(self) -> None:
        for _, stack in self.held:
            stack.close()
        self.held.clear()
        self.store.close()
        self.store = self.opened()

    @rule()
    def fill_and_restart(self) -> None:
        """What was held goes beyond the budget when its process ends."""
        self.hold(2)
        self.publish(4)
        self.restart()

    @invariant()
    def what_is_held_is_whole(self) -> None:
        for number, _ in self.held:
            assert (self.path(number) / "weights").stat().st_size == SIZES[number] * KIB

    @invariant()
    def no_more_than_the_budget_stays(self) -> None:
        """But for what is held, and the one used last."""
        spared = sum(SIZES[number] for number in {number for number, _ in self.held}) * KIB + max(SIZES) * KIB
        eventually(lambda: self.bytes_here() <= max(BUDGET, spared), what="room was made")

    def bytes_here(self) -> int:
        return sum(SIZES[number] * KIB for number in self.stored if (self.path(number) / "weights").exists())

    def teardown(self) -> None:
        self.store.close()
        assert not any((self.root / "data" / "cache" / "staging").iterdir())
        shutil.rmtree(self.root)
        # All such stores of a process are one dictionary, which each look goes through.
        fsspec.filesystem("memory").rm(self.url, recursive=True)


CacheMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
TestCache = CacheMachine.TestCase
