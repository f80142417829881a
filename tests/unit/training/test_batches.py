"""The plan of a run: every row once an epoch, rows of one length together, the same for the same seed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from graft_server.training.batches import BatchPlan
from graft_server.training.options import TrainingOptions
from graft_server.training.schedule import learning_rate

LENGTHS = st.lists(st.integers(2, 200), min_size=1, max_size=120)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
def test_each_epoch_has_every_row_once(lengths: list[int], size: int, accumulation: int, epoch: int) -> None:
    plan = BatchPlan(lengths, batch_size=size, accumulation=accumulation, seed=3)
    steps = [plan.step(epoch * plan.steps_per_epoch + index) for index in range(plan.steps_per_epoch)]
    assert all(1 <= len(step) <= accumulation for step in steps)
    batches = [batch for step in steps for batch in step]
    assert all(1 <= len(batch) <= size for batch in batches)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))


@given(LENGTHS, st.integers(0, 40))
def test_a_step_does_not_depend_on_the_steps_before_it(lengths: list[int], number: int) -> None:
    def plan() -> BatchPlan:
        return BatchPlan(lengths, batch_size=4, accumulation=2, seed=5)

    walked = plan()
    for earlier in range(number):
        walked.step(earlier)
    assert walked.step(number) == plan().step(number)


def test_epochs_and_seeds_differ() -> None:
    lengths = [10] * 64
    plan = BatchPlan(lengths, batch_size=4, accumulation=1, seed=0)
    first = [plan.step(index) for index in range(16)]
    assert first != [plan.step(index + 16) for index in range(16)]
    other = BatchPlan(lengths, batch_size=4, accumulation=1, seed=1)
    assert first != [other.step(index) for index in range(16)]


def test_rows_of_similar_length_share_a_batch() -> None:
    lengths = [10, 200] * 40
    plan = BatchPlan(lengths, batch_size=8, accumulation=1, seed=0)
    batches = [plan.step(index)[0] for index in range(plan.steps_per_epoch)]
    assert all(len({lengths[row] for row in batch}) == 1 for batch in batches)


@given(st.sampled_from(["linear", "cosine"]), st.integers(1, 300), st.floats(0, 0.9))
def test_the_rate_rises_to_its_peak_and_falls(schedule: str, steps: int, warmup: float) -> None:
    options = TrainingOptions.model_validate({"schedule": schedule, "warmup_ratio": warmup, "learning_rate": 0.5})
    rates = [learning_rate(step, steps, options) for step in range(steps)]
    peak = rates.index(max(rates))
    assert all(0 < rate <= 0.5 for rate in rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_a_constant_rate_stays() -> None:
    options = TrainingOptions(schedule="constant", warmup_ratio=0, learning_rate=0.5)
    assert {learning_rate(step, 10, options) for step in range(10)} == {0.5}
