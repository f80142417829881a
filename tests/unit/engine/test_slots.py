"""Adapter slots as pure state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_server.engine.slots import Slots


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


def test_a_pinned_adapter_never_leaves_for_another() -> None:
    slots = Slots(2)
    slots.pin(1)
    slots.put(1)
    slots.put(2)
    assert [slots.put(3), slots.put(4)] == [2, 3]
    slots.unpin(1)
    assert slots.put(5) == 1


def test_one_slot_is_never_pinned() -> None:
    slots = Slots(2)
    slots.pin(1)
    slots.pin(1)
    with pytest.raises(LookupError, match="1 of 2 slots are pinned, and one has to stay free"):
        slots.pin(2)
    with pytest.raises(LookupError):
        Slots(1).pin(1)


def test_removing_a_pinned_adapter_unpins_it() -> None:
    slots = Slots(2)
    slots.pin(1)
    slots.put(1)
    slots.remove(1)
    assert not slots.pinned
    slots.pin(2)


MOVES = ["put", "acquire", "release", "remove", "pin", "unpin"]


@given(st.lists(st.tuples(st.sampled_from(MOVES), st.integers(1, 6))))
def test_slots_are_never_exceeded_and_users_and_pins_never_lose_theirs(moves: list[tuple[str, int]]) -> None:
    slots = Slots(3)
    users: dict[int, int] = {}
    pinned: set[int] = set()
    for move, i in moves:
        if move == "put" and slots.room():
            evicted = slots.put(i)
            assert evicted is None or (users.get(evicted, 0) == 0 and evicted not in pinned)
        elif move == "acquire" and i in slots:
            slots.acquire(i)
            users[i] = users.get(i, 0) + 1
        elif move == "release" and users.get(i, 0):
            slots.release(i)
            users[i] -= 1
        elif move == "remove" and not users.get(i, 0):
            slots.remove(i)
            pinned.discard(i)
        elif move == "pin" and (i in pinned or len(pinned) < 2):
            slots.pin(i)
            pinned.add(i)
        elif move == "unpin":
            slots.unpin(i)
            pinned.discard(i)
        assert len(slots) <= 3
        assert all(i in slots for i, count in users.items() if count)
        assert slots.pinned == pinned
        # Whoever wants a slot gets one as soon as nobody uses any.
        assert slots.room() or any(users.values())
        slots.check_integrity()
