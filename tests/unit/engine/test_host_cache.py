"""Host memory for adapters as pure state."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from graft_server.engine.torch.host_cache import HostCache

BUDGET = 10

ids = st.integers(1, 6)


def filled(*sizes: int) -> HostCache[str]:
    """Values with ids from 1 on, put in that order."""
    cache: HostCache[str] = HostCache(BUDGET)
    for engine_id, size in enumerate(sizes, start=1):
        cache.put(engine_id, f"value {engine_id}", size)
    return cache


def held(cache: HostCache[str]) -> list[int]:
    return [engine_id for engine_id in range(1, 10) if engine_id in cache]


def test_the_least_recently_used_make_room() -> None:
    cache = filled(4, 4, 2)
    assert cache.get(1) == "value 1"
    cache.put(4, "value 4", 5)
    assert held(cache) == [1, 4]


def test_those_to_be_kept_leave_last() -> None:
    cache = filled(4, 4, 2)
    cache.put(4, "value 4", 4, kept=(1, 9))
    assert held(cache) == [1, 3, 4]
    cache.put(5, "value 5", 8, kept=(1, 3))
    assert held(cache) == [3, 5]


def test_one_that_alone_is_larger_stays_until_the_next_comes() -> None:
    cache = filled(4, 25)
    assert held(cache) == [2]
    cache.put(3, "value 3", 1)
    assert held(cache) == [3]


def test_room_is_judged_by_the_largest() -> None:
    cache = filled(2, 5)
    assert cache.room_beside(())
    assert cache.room_beside((2,))
    assert not cache.room_beside((1, 2))


def test_an_empty_cache_has_room() -> None:
    assert filled().room_beside((1, 2))


class Uses(RuleBasedStateMachine):
    """Against a list of all values ever put, the most recently used last."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: HostCache[int] = HostCache(BUDGET)
        self.sizes: OrderedDict[int, int] = OrderedDict()
        self.serial = 0

    @rule(engine_id=ids, size=st.integers(0, 2 * BUDGET))
    def put(self, engine_id: int, size: int) -> None:
        self.serial += 1
        self.cache.put(engine_id, self.serial, size)
        self.sizes.pop(engine_id, None)
        self.sizes[engine_id] = size
        while sum(self.sizes.values()) > BUDGET and len(self.sizes) > 1:
            self.sizes.popitem(last=False)
        assert self.cache.get(engine_id) == self.serial

    @rule(engine_id=ids)
    def get(self, engine_id: int) -> None:
        found = self.cache.get(engine_id)
        assert (found is not None) == (engine_id in self.sizes)
        if found is not None:
            self.sizes.move_to_end(engine_id)

    @rule(engine_id=ids)
    def remove(self, engine_id: int) -> None:
        self.cache.remove(engine_id)
        self.sizes.pop(engine_id, None)
        assert engine_id not in self.cache

    @invariant()
    def it_holds_what_was_used_last_and_fits(self) -> None:
        assert [i for i in range(1, 7) if i in self.cache] == sorted(self.sizes)
        assert self.cache.bytes == sum(self.sizes.values())
        self.cache.check_integrity()


TestUses = Uses.TestCase
