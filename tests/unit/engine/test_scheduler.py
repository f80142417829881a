"""The scheduler and its block pool as pure state: nothing lost, nothing leaked, nothing starved."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_server.engine.torch.block_pool import BlockPool
from graft_server.engine.torch.scheduler import Scheduler
from graft_server.engine.torch.sequence import Sequence, Tree


def scheduler(blocks: int = 64, *, budget: int = 32, sequences: int = 8) -> Scheduler:
    return Scheduler(BlockPool(blocks, 4), max_batch_tokens=budget, max_sequences=sequences)


def sequence(name: str, length: int, *, first: int = 0) -> Sequence:
    return Sequence(name, 0, list(range(first, first + length)))


def test_a_long_prompt_is_computed_in_pieces_beside_decoding() -> None:
    s = scheduler(budget=8)
    short, long = sequence("short", 3), sequence("long", 20)
    s.add(short)
    s.advance(s.schedule())
    short.tokens.append(0)
    s.add(long)
    seen = []
    for _ in range(3):
        chunks = s.schedule()
        seen.append({c.sequence.id: c.count for c in chunks})
        s.advance(chunks)
        short.tokens.append(0)
    assert seen == [{"short": 1, "long": 7}, {"short": 1, "long": 7}, {"short": 1, "long": 6}]


def test_running_sequences_are_bounded() -> None:
    s = scheduler(sequences=2)
    for i in range(5):
        s.add(sequence(str(i), 2))
    assert [c.sequence.id for c in s.schedule()] == ["0", "1"]


def test_the_latest_arrival_gives_way_when_the_cache_is_full() -> None:
    s = scheduler(blocks=4, budget=32)
    first, second = sequence("first", 8), sequence("second", 8, first=100)
    s.add(first)
    s.add(second)
    s.advance(s.schedule())
    assert s.pool.free == 0
    first.tokens.append(0)
    second.tokens.append(0)
    chunks = s.schedule()
    assert [c.sequence.id for c in chunks] == ["first"]
    assert list(s.waiting) == [second]
    assert second.computed == 0
    assert second.blocks == []
    assert s.preemptions == 1


def test_a_preempted_sequence_goes_back_before_later_arrivals() -> None:
    s = scheduler(blocks=4, budget=32)
    first, second, third = (sequence(name, 8, first=100 * i) for i, name in enumerate(("first", "second", "third")))
    for each in (first, second, third):
        s.add(each)
    s.advance(s.schedule())
    first.tokens.append(0)
    second.tokens.append(0)
    s.schedule()
    assert list(s.waiting) == [second, third]


def test_releasing_a_block_twice_is_an_error() -> None:
    pool = BlockPool(2, 4)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(ValueError, match="released twice"):
        pool.release(blocks)


def test_allocating_too_much_takes_nothing() -> None:
    pool = BlockPool(2, 4)
    with pytest.raises(MemoryError):
        pool.allocate(3)
    assert pool.free == 2


def test_a_prompt_computed_before_starts_behind_what_is_known() -> None:
    s = scheduler()
    first = sequence("first", 11)
    s.add(first)
    s.advance(s.schedule())
    s.finish(first)
    second = sequence("second", 14)
    s.add(second)
    (chunk,) = s.schedule()
    # 11 tokens fill two blocks of 4; the third is not whole.
    assert (chunk.start, chunk.count) == (8, 6)
    assert s.reused_tokens == 8


def test_a_prompt_known_to_the_end_still_computes_what_its_logits_need() -> None:
    s = scheduler()
    for name in ("first", "second"):
        s.add(sequence(name, 8))
        (chunk,) = s.schedule()
        s.advance([chunk])
        s.finish(chunk.sequence)
    assert (chunk.start, chunk.count) == (4, 4)


def test_running_sequences_share_what_is_alike() -> None:
    s = scheduler()
    first, second = sequence("first", 8), sequence("second", 9)
    s.add(first)
    s.advance(s.schedule())
    s.add(second)
    s.schedule()
    assert second.blocks[:2] == first.blocks[:2]
    s.finish(first)
    assert s.pool.used == 3
    s.finish(second)
    assert s.pool.used == 0


def test_prompts_of_one_step_share_what_is_alike() -> None:
    s = scheduler(budget=17)
    first, second, third = sequence("first", 10), sequence("second", 10), sequence("third", 10)
    for each in (first, second, third):
        s.add(each)
    chunks = s.schedule()
    assert [(c.sequence.id, c.start, c.count) for c in chunks] == [("first", 0, 10), ("second", 8, 2), ("third", 8, 2)]
    assert first.blocks[:2] == second.blocks[:2] == third.blocks[:2]
    assert s.pool.used == 5
    s.advance(chunks)
    assert [each.computed for each in (first, second, third)] == [10, 10, 10]


def test_only_what_a_step_computes_is_shared_in_it() -> None:
    s = scheduler(budget=7)
    first, second = sequence("first", 12), sequence("second", 12)
    s.add(first)
    s.advance(s.schedule())
    s.add(second)
    chunks = {c.sequence.id: c for c in s.schedule()}
    assert (chunks["first"].start, chunks["first"].count) == (7, 5)
    assert (chunks["second"].start, chunks["second"].count) == (8, 2)


def test_nothing_is_shared_between_adapters() -> None:
    s = scheduler()
    one, other = Sequence("one", 1, list(range(8))), Sequence("other", 2, list(range(8)))
    s.add(one)
    s.advance(s.schedule())
    s.add(other)
    chunks = {c.sequence.id: c for c in s.schedule()}
    assert chunks["other"].start == 0
    assert not set(one.blocks) & set(other.blocks)


def test_candidates_behind_a_prompt_are_never_found_by_others() -> None:
    s = scheduler()
    scored = sequence("scored", 4)
    scored.tokens += [4, 5, 6, 7]
    scored.tree = Tree(4, [-1] * 4 + [0] * 4, list(range(8)))
    s.add(scored)
    s.advance(s.schedule())
    s.finish(scored)
    s.add(sequence("plain", 9))
    (chunk,) = s.schedule()
    assert chunk.start == 4


def test_the_end_of_an_idle_prefix_makes_room_first() -> None:
    s = scheduler(blocks=4)
    first = sequence("first", 12)
    s.add(first)
    s.advance(s.schedule())
    s.finish(first)
    other = Sequence("other", 1, list(range(8)))
    s.add(other)
    s.advance(s.schedule())
    s.finish(other)
    s.add(sequence("again", 13))
    (chunk,) = s.schedule()
    assert chunk.start == 8


@settings(max_examples=200, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(0, 6), st.booleans()), min_size=1, max_size=15
    ),
    blocks=st.integers(11, 40),
    budget=st.integers(1, 40),
    most=st.integers(1, 6),
)
def test_every_request_ends_once_and_every_block_comes_back(
    requests: list[tuple[int, int, int, bool]], blocks: int, budget: int, most: int
) -> None:
    """Requests (prompt, answer, arrival step, cancelled) through a simulated engine."""
    s = scheduler(blocks, budget=budget, sequences=most)
    arriving = sorted(enumerate(requests), key=lambda r: r[1][2])
    wanted = {str(i): answer for i, (_, answer, _, _) in arriving}
    prompts = {str(i): prompt for i, (prompt, _, _, _) in arriving}
    cancelled = {str(i) for i, (_, _, _, cancel) in arriving if cancel}
    ended: list[str] = []
    steps = 0
    while arriving or not s.idle:
        while arriving and arriving[0][1][2] <= steps:
            i, (prompt, _, _, _) = arriving.pop(0)
            s.add(sequence(str(i), prompt))
        chunks = s.schedule()
        assert sum(c.count for c in chunks) <= budget
        assert len(s.running) <= most
        held = {b for q in [*s.running, *s.waiting] for b in q.blocks}
        assert len(held) == s.pool.used
        assert not any(q.blocks for q in s.waiting)
        for c in chunks:
            assert c.start == c.sequence.computed
            assert len(c.sequence.blocks) * s.pool.block_size >= c.end
        if not arriving and not s.idle:
            assert chunks, "work is waiting and nothing runs"
        s.advance(chunks)
        for c in chunks:
            if not c.finishes:
                continue
            q = c.sequence
            q.tokens.append(0)
            if len(q.tokens) - prompts[q.id] >= wanted[q.id] or (q.id in cancelled and steps % 3 == 0):
                ended.append(q.id)
                s.finish(q)
                s.finish(q)
        steps += 1
        assert steps < 5_000, "starved"
    assert sorted(ended) == sorted(wanted)
    assert s.pool.used == 0
