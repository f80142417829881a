"""Adapters on their way to a slot, with a disk that answers when the test says so."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_server.engine.base import AdapterLoadError, AdapterSource, EngineError
from graft_server.engine.slots import Slots
from graft_server.engine.torch.host_cache import HostCache

pytestmark = pytest.mark.torch

BUDGET = 100


@dataclass(frozen=True)
class Weights:
    """Stands where a resident adapter stands: the loader asks for its size only."""

    engine_id: int
    bytes: int


@dataclass
class Disk:
    """Fetches are held back while ``held``; reads of ``broken`` fail; ``begun`` is every fetch so far, in order. A read
    has ``pieces``, and each of them takes a second by ``now``."""

    sizes: dict[int, int] = field(default_factory=dict)
    broken: dict[int, Exception] = field(default_factory=dict)
    begun: list[int] = field(default_factory=list)
    pieces: int = 1
    now: float = 0.0
    _open: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._open.set()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def clock(self) -> float:
        return self.now

    def fetch(self, source: AdapterSource) -> None:
        self.begun.append(source.engine_id)
        assert self._open.wait(timeout=10)

    def read(self, source: AdapterSource) -> Generator[None, None, Any]:
        for _ in range(self.pieces):
            self.now += 1.0
            yield
        if source.engine_id in self.broken:
            raise self.broken[source.engine_id]
        return Weights(source.engine_id, self.sizes.get(source.engine_id, 10))


class Rig:
    """A loader, and what it placed and displaced. ``used`` adapters are acquired as they are placed, as those are for
    which requests wait."""

    def __init__(self, disk: Disk, *, slots: int, budget: int = BUDGET) -> None:
        from graft_server.engine.torch.loader import AdapterLoader

        self.disk = disk
        self.slots = Slots(slots)
        self.placed: list[int] = []
        self.displaced: list[int] = []
        self.failed: list[tuple[AdapterSource, EngineError]] = []
        self.used: set[int] = set()
        self.loader = AdapterLoader(
            slots=self.slots,
            host=HostCache(budget),
            fetch=disk.fetch,
            read=disk.read,
            place=self._place,
            displace=self.displaced.append,
            clock=disk.clock,
        )

    def _place(self, engine_id: int, adapter: Any) -> None:
        assert adapter.engine_id == engine_id
        self.placed.append(engine_id)
        if engine_id in self.used:
            self.slots.acquire(engine_id)

    def poll(self) -> None:
        self.failed += self.loader.poll()
        self.loader.check_integrity()

    def until(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < until
            self.poll()
            time.sleep(0.0005)

    def polls_until_placed(self, engine_id: int, *, step_seconds: float) -> int:
        """How many steps of this length it takes from when the files are there."""
        self.loader.poll(step_seconds=0.0)
        self.until_fetched()
        for polls in range(1, 1000):
            self.loader.poll(step_seconds=step_seconds)
            if engine_id in self.placed:
                return polls
        raise AssertionError("it was not placed")

    def until_fetched(self) -> None:
        until = time.monotonic() + 10
        while self.loader._reading is None or not self.loader._reading.ready:
            assert time.monotonic() < until
            time.sleep(0.0005)

    def at_rest(self) -> None:
        """Poll until nothing is being read and nothing could be."""
        self.poll()
        self.until(lambda: self.loader._reading is None)

    def occupied(self, *engine_ids: int) -> None:
        """Take these in, each in use."""
        self.used |= set(engine_ids)
        for engine_id in engine_ids:
            self.loader.want(source(engine_id))
        self.until(lambda: set(engine_ids) <= set(self.placed))


def source(engine_id: int) -> AdapterSource:
    return AdapterSource(f"a{engine_id}@1", engine_id, "/nowhere", "lora")


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.release()


def make(disk: Disk, **options: Any) -> Rig:
    return Rig(disk, **{"slots": 2, **options})


# Order


def test_a_wanted_adapter_comes_into_a_slot(disk: Disk) -> None:
    rig = make(disk)
    rig.loader.want(source(1))
    assert rig.loader.busy
    rig.until(lambda: rig.placed == [1])
    assert not rig.loader.busy
    assert 1 in rig.slots


def test_what_is_wanted_goes_before_what_is_fetched_ahead(disk: Disk) -> None:
    rig = make(disk)
    disk.hold()
    for engine_id in (1, 2, 3):
        rig.loader.fetch_ahead(source(engine_id))
    rig.poll()
    rig.loader.want(source(4))
    rig.loader.want(source(3))
    disk.release()
    rig.until(lambda: not rig.loader.busy)
    assert disk.begun == [1, 4, 3, 2]
    assert rig.placed == [4, 3]


def test_what_was_fetched_ahead_is_not_read_again(disk: Disk) -> None:
    rig = make(disk)
    rig.loader.fetch_ahead(source(1))
    rig.until(lambda: not rig.loader.busy)
    assert rig.placed == []
    rig.loader.want(source(1))
    rig.poll()
    assert rig.placed == [1]
    assert disk.begun == [1]


def test_wishes_for_later_push_out_the_oldest(disk: Disk) -> None:
    rig = make(disk)
    disk.hold()
    rig.loader.fetch_ahead(source(1))
    rig.poll()
    for engine_id in range(2, 300):
        rig.loader.fetch_ahead(source(engine_id))
    disk.release()
    rig.until(lambda: not rig.loader.busy)
    assert disk.begun == [1, *range(44, 300)]


def test_several_taken_in_at_once_do_not_push_each_other_out(disk: Disk) -> None:
    rig = make(disk)
    for engine_id in (1, 2):
        rig.loader.want(source(engine_id))
    rig.until(lambda: not rig.loader.busy)
    for engine_id in (3, 4):
        rig.loader.fetch_ahead(source(engine_id))
    rig.until(lambda: not rig.loader.busy)
    for engine_id in (3, 4):
        rig.loader.want(source(engine_id))
    rig.poll()
    assert rig.displaced == [1, 2]
    assert rig.slots.ids() == [3, 4]


def test_one_that_is_needed_stays_until_it_is_not(disk: Disk) -> None:
    rig = make(disk, slots=1)
    rig.occupied(1)
    rig.loader.want(source(2))
    rig.at_rest()
    assert rig.placed == [1]
    assert rig.loader.busy
    rig.slots.release(1)
    rig.poll()
    assert rig.placed == [1, 2]
    assert rig.displaced == [1]


def test_steps_become_longer_by_a_bounded_part(disk: Disk) -> None:
    rig = make(disk, slots=4)
    disk.pieces = 10
    rig.loader.want(source(1))
    # A piece takes as long as a twelfth of this step.
    assert rig.polls_until_placed(1, step_seconds=12.0) == pytest.approx(10, abs=1)
    rig.loader.want(source(2))
    # A piece that takes longer than there was time for is made up for: the part is the same.
    assert rig.polls_until_placed(2, step_seconds=3.0) == pytest.approx(40, abs=4)


def test_what_a_request_waits_for_may_take_more_of_the_time(disk: Disk) -> None:
    rig = make(disk, slots=4)
    disk.pieces = 12
    rig.loader.want(source(1), urgent=True)
    assert rig.polls_until_placed(1, step_seconds=12.0) == pytest.approx(3, abs=1)
    # And so does what stands in its way.
    rig.loader.want(source(2))
    rig.loader.poll(step_seconds=0.0)
    rig.loader.want(source(3), urgent=True)
    assert rig.polls_until_placed(2, step_seconds=12.0) == pytest.approx(3, abs=1)
    assert rig.polls_until_placed(3, step_seconds=12.0) == pytest.approx(3, abs=1)


def test_without_steps_a_look_at_the_messages_is_what_interrupts_it(disk: Disk) -> None:
    rig = make(disk, slots=4)
    disk.pieces = 3
    rig.loader.want(source(1))
    rig.loader.poll()
    rig.until_fetched()
    # Each piece is longer than a slice.
    for _ in range(3):
        assert rig.placed == []
        rig.loader.poll()
    rig.until(lambda: rig.placed == [1])


def test_nobody_waits_any_more(disk: Disk) -> None:
    rig = make(disk)
    disk.hold()
    rig.loader.want(source(1))
    rig.poll()
    rig.loader.give_up(1)
    disk.release()
    rig.at_rest()
    assert rig.placed == []
    assert not rig.loader.busy
    # It had been read as good as whole.
    assert 1 in rig.loader.host


# Failures


def test_a_failure_is_reported_once(disk: Disk) -> None:
    rig = make(disk)
    disk.broken[1] = AdapterLoadError("a1@1: adapter_config.json is missing")
    rig.loader.want(source(1))
    rig.until(lambda: not rig.loader.busy)
    rig.poll()
    assert [(failed.engine_id, str(error)) for failed, error in rig.failed] == [
        (1, "a1@1: adapter_config.json is missing")
    ]
    del disk.broken[1]
    rig.loader.want(source(1))
    rig.until(lambda: rig.placed == [1])


def test_a_failure_of_any_kind_names_the_version(disk: Disk) -> None:
    rig = make(disk)
    disk.broken[1] = KeyError("lora_A")
    rig.loader.want(source(1))
    rig.until(lambda: bool(rig.failed))
    assert isinstance(rig.failed[0][1], AdapterLoadError)
    assert str(rig.failed[0][1]) == "a1@1: 'lora_A'"


def test_a_failure_of_what_is_only_fetched_ahead_is_nobodys(disk: Disk) -> None:
    rig = make(disk)
    disk.broken[1] = AdapterLoadError("broken")
    rig.loader.fetch_ahead(source(1))
    rig.until(lambda: not rig.loader.busy)
    assert rig.failed == []
    disk.hold()
    rig.loader.fetch_ahead(source(1))
    rig.poll()
    rig.loader.want(source(1))
    disk.release()
    rig.until(lambda: not rig.loader.busy)
    assert len(rig.failed) == 1


@pytest.mark.parametrize("error", [AdapterLoadError("a1@1: 'lora_A'"), KeyError("lora_A")])
def test_a_check_always_answers(disk: Disk, error: Exception) -> None:
    rig = make(disk)
    told: list[EngineError | None] = []
    rig.loader.check(source(1), told.append)
    rig.until(lambda: told == [None])
    disk.broken[1] = error
    rig.loader.check(source(1), told.append)
    rig.until(lambda: len(told) == 2)
    assert isinstance(told[1], AdapterLoadError)
    assert str(told[1]) == "a1@1: 'lora_A'"
    assert rig.placed == []


# Forgetting


def test_forgetting_frees_the_slot_and_the_host_memory(disk: Disk) -> None:
    rig = make(disk)
    rig.loader.want(source(1))
    rig.until(lambda: rig.placed == [1])
    rig.loader.forget(1)
    assert rig.displaced == [1]
    assert 1 not in rig.slots
    assert 1 not in rig.loader.host


def test_one_forgotten_while_it_is_read_is_not_kept(disk: Disk) -> None:
    rig = make(disk)
    disk.hold()
    rig.loader.want(source(1))
    rig.poll()
    rig.loader.forget(1)
    disk.release()
    rig.at_rest()
    assert rig.placed == []
    assert 1 not in rig.loader.host
    assert not rig.loader.busy


@pytest.mark.parametrize("again", ["want", "fetch_ahead"])
def test_one_forgotten_and_asked_for_again_while_it_is_read(disk: Disk, again: str) -> None:
    rig = make(disk)
    disk.hold()
    rig.loader.want(source(1))
    rig.poll()
    rig.loader.forget(1)
    getattr(rig.loader, again)(source(1))
    disk.release()
    rig.until(lambda: not rig.loader.busy)
    assert rig.placed == ([1] if again == "want" else [])
    assert 1 in rig.loader.host
    assert disk.begun == [1]


# Memory


def test_what_waits_for_a_slot_is_not_pushed_out_by_what_does_not(disk: Disk) -> None:
    rig = make(disk, slots=1)
    rig.occupied(1)
    disk.sizes = dict.fromkeys(range(2, 9), 40)
    for engine_id in (2, 3):
        rig.loader.want(source(engine_id))
    for engine_id in range(4, 9):
        rig.loader.fetch_ahead(source(engine_id))
    rig.at_rest()
    # Two of 40 bytes are all that the budget of 100 holds.
    assert disk.begun == [1, 2, 3]
    rig.slots.release(1)
    rig.used.add(2)
    rig.until(lambda: 2 in rig.placed)
    rig.at_rest()
    assert 3 in rig.loader.host


def test_with_all_slots_in_use_and_no_memory_left_nothing_is_read_again_and_again(disk: Disk) -> None:
    rig = make(disk, slots=1)
    rig.occupied(1)
    # Each fits, two don't, and one alone does not fill the budget.
    disk.sizes = dict.fromkeys(range(2, 9), 60)
    for engine_id in range(2, 9):
        rig.loader.want(source(engine_id))
    rig.at_rest()
    assert disk.begun == [1, 2]
    rig.slots.release(1)
    rig.until(lambda: not rig.loader.busy)
    assert disk.begun == list(range(1, 9))
    assert rig.placed == list(range(1, 9))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 130), min_size=1, max_size=10),
    ahead=st.lists(st.integers(1, 60), max_size=4),
    slots=st.integers(1, 3),
)
def test_any_sizes_come_to_rest_within_the_budget_and_everybody_gets_a_turn(
    sizes: list[int], ahead: list[int], slots: int
) -> None:
    disk = Disk()
    rig = make(disk, slots=slots)
    rig.occupied(*range(1, slots + 1))
    wanted = list(range(10, 10 + len(sizes)))
    disk.sizes = {**dict(zip(wanted, sizes, strict=True)), **{100 + at: size for at, size in enumerate(ahead)}}
    rig.used |= set(wanted)
    for engine_id in wanted:
        rig.loader.want(source(engine_id))
    for at in range(len(ahead)):
        rig.loader.fetch_ahead(source(100 + at))
    rig.at_rest()
    # A larger one may have pushed out smaller ones that were read before, once.
    assert max(Counter(disk.begun).values()) == 1
    held = [engine_id for engine_id in wanted if engine_id in rig.loader.host]
    assert held
    for engine_id in range(1, slots + 1):
        rig.slots.release(engine_id)
    turns = 0
    while rig.loader.busy:
        rig.until(lambda turns=turns: len(rig.placed) > slots + turns or not rig.loader.busy)
        for engine_id in rig.placed[slots + turns :]:
            rig.slots.release(engine_id)
            turns += 1
    assert sorted(rig.placed[slots:]) == wanted
    assert max(Counter(disk.begun).values()) <= 2
