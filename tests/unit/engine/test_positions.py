"""Positions in a stack as pure state: nobody is lost, who stays is not moved, and moving together pays for itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from graft_server.engine.torch.positions import Positions, Write

#: What a write costs, in reads of a position; the module's own figure.
WRITE = 3

ids = st.integers(1, 12)
mixtures = st.sets(ids, max_size=8)


def reads_in_vain(positions: Positions, wanted: set[int]) -> int:
    """Positions that a batch of these adapters reads and does not use."""
    return max((positions[i] + 1 for i in wanted), default=0) - len(wanted)


def outside(positions: Positions, wanted: set[int]) -> int:
    """Adapters that don't lie among the first ``len(wanted)`` positions."""
    return sum(positions[i] >= len(wanted) for i in wanted)


class Steps(RuleBasedStateMachine):
    """Batches with changing mixtures; ``memory`` is what the writes made of the tensors behind the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = Positions()
        self.memory: dict[int, int] = {}
        self.most = 0
        self.vain = 0
        self.moves = 0

    def step(self, wanted: set[int]) -> None:
        before = {i: self.positions[i] for i in wanted if i in self.positions}
        writes = self.positions.assign(wanted)
        self.memory.update({write.position: write.engine_id for write in writes})
        written = [write.engine_id for write in writes]
        newcomers = wanted - before.keys()
        assert set(written) <= wanted
        assert newcomers <= set(written)
        stayed = [i for i in before if i not in written]
        assert all(self.positions[i] == before[i] for i in stayed)
        assert all(self.memory[self.positions[i]] == i for i in wanted)
        # Who was there already, or has just come, is written once more only to lie together with the others.
        moves = len(written) - len(newcomers)
        if moves:
            assert outside(self.positions, wanted) == 0
        self.moves += moves
        self.most = max(self.most, len(wanted))

    @rule(wanted=mixtures)
    def another_mixture(self, wanted: set[int]) -> None:
        self.step(wanted)
        self.vain += reads_in_vain(self.positions, wanted)

    @rule(wanted=mixtures, steps=st.integers(1, 60))
    def the_same_mixture_for_a_while(self, wanted: set[int], steps: int) -> None:
        """Ski rental: renting costs no more than buying would have, and one step."""
        self.step(wanted)
        each, away = reads_in_vain(self.positions, wanted), outside(self.positions, wanted)
        vain = each
        for _ in range(steps - 1):
            self.step(wanted)
            vain += reads_in_vain(self.positions, wanted)
        self.vain += vain
        assert vain <= WRITE * away + each
        if steps > WRITE * away:
            assert {self.positions[i] for i in wanted} == set(range(len(wanted)))

    @rule(engine_id=ids)
    def an_adapter_is_removed(self, engine_id: int) -> None:
        self.positions.remove(engine_id)
        assert engine_id not in self.positions

    @invariant()
    def everybody_has_one_position(self) -> None:
        placed = [i for i in self.positions.ids if i is not None]
        assert len(placed) == len(set(placed))
        assert all(self.positions.ids[self.positions[i]] == i for i in placed)

    @invariant()
    def there_are_no_more_positions_than_were_needed_at_once(self) -> None:
        assert len(self.positions) <= self.most


TestSteps = Steps.TestCase


@given(st.lists(mixtures, max_size=60))
def test_every_move_was_paid_for_by_reads_in_vain(batches: list[set[int]]) -> None:
    """So the whole cost is at most that of the newcomers, which nobody avoids, and twice the reads in vain."""
    positions = Positions()
    vain = moved = 0
    for wanted in batches:
        at = {i: positions[i] for i in wanted if i in positions}
        writes = positions.assign(wanted)
        newcomers = len(wanted) - len(at)
        at.update({write.engine_id: write.position for write in writes[:newcomers]})
        # The decision is made on what this batch would read if nothing were moved.
        vain += max((position + 1 for position in at.values()), default=0) - len(wanted)
        moved += len(writes) - newcomers
    assert WRITE * moved <= vain


def test_a_newcomer_takes_a_free_position_before_that_of_one_who_is_not_wanted() -> None:
    positions = Positions()
    positions.assign([1, 2, 3])
    positions.remove(2)
    assert positions.assign([1, 4]) == [Write(1, 4)]
    assert 3 in positions


def test_without_a_free_position_a_newcomer_replaces_one_who_is_not_wanted() -> None:
    positions = Positions()
    positions.assign([1, 2])
    assert positions.assign([2, 3]) == [Write(0, 3)]
    assert 1 not in positions
