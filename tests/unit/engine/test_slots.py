"""Adapter slots as pure state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_server.engine.torch.slots import Slots


def test_the_least_recently_used_idle_adapter_leaves() -> None:
    slots = Slots(2)
    slots.put(1)
    slots.put(2)
    slots.acquire(1)
    slots.release(1)
    assert slots.put(3) == 2
    assert slots.ids() == [1, 3]
    assert slots.evictions == 1


def test_an_adapter_in_use_never_leaves() -> None:
    slots = Slots(1)
    slots.put(1)
    slots.acquire(1)
    assert not slots.room()
    with pytest.raises(LookupError):
        slots.put(2)
    with pytest.raises(ValueError, match="in use"):
        slots.remove(1)
    slots.release(1)
    assert slots.put(2) == 1


@given(st.lists(st.tuples(st.sampled_from(["put", "acquire", "release", "remove"]), st.integers(1, 6))))
def test_slots_are_never_exceeded_and_users_never_lose_theirs(moves: list[tuple[str, int]]) -> None:
    slots = Slots(3)
    users: dict[int, int] = {}
    for move, i in moves:
        if move == "put" and slots.room():
            evicted = slots.put(i)
            assert evicted is None or users.get(evicted, 0) == 0
        elif move == "acquire" and i in slots:
            slots.acquire(i)
            users[i] = users.get(i, 0) + 1
        elif move == "release" and users.get(i, 0):
            slots.release(i)
            users[i] -= 1
        elif move == "remove" and not users.get(i, 0):
            slots.remove(i)
        assert len(slots) <= 3
        assert all(i in slots for i, count in users.items() if count)
