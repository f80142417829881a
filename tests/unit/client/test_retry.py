"""When and how long the client waits."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from graft_client._retry import RetryPolicy, parse_retry_after
from graft_client.errors import AnswerTimeoutError, BusyError, ConnectError, GraftError, NotFoundError
from graft_client.schemas.common import Problem


def busy(retry_after: float | None = None) -> BusyError:
    return BusyError(Problem(title="t", status=503, detail="d", code="c"), retry_after=retry_after)


def test_the_wait_doubles_between_half_and_all_of_its_ceiling() -> None:
    policy = RetryPolicy(retries=10, first=0.25, longest=3.0)
    shortest = [policy.delay(busy(), n, draw=lambda: 0.0) for n in range(6)]
    longest = [policy.delay(busy(), n, draw=lambda: 1.0) for n in range(6)]
    assert shortest == [0.125, 0.25, 0.5, 1.0, 1.5, 1.5]
    assert longest == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0]


def test_retry_after_is_taken_at_its_word_up_to_the_bound() -> None:
    policy = RetryPolicy(retries=1, longest=30.0)
    assert policy.delay(busy(7.0), 0) == 7.0
    assert policy.delay(busy(0.0), 0) == 0.0
    assert policy.delay(busy(3600.0), 0) == 30.0


def test_it_gives_up_after_so_many_retries() -> None:
    assert RetryPolicy(retries=2).delay(busy(), 1) is not None
    assert RetryPolicy(retries=2).delay(busy(), 2) is None
    assert RetryPolicy(retries=0).delay(busy(), 0) is None


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (ConnectError("gone"), True),
        (AnswerTimeoutError("silent"), False),
        (NotFoundError(Problem(title="t", status=404, detail="d", code="c")), False),
        (GraftError("other"), False),
    ],
)
def test_only_what_passes_is_tried_again(error: GraftError, retried: bool) -> None:
    assert (RetryPolicy().delay(error, 0) is not None) is retried


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("-5", 0.0),
        ("nan", None),
        ("Fri, 02 Jan 2026 03:04:35 GMT", 30.0),
        ("Fri, 02 Jan 2026 03:00:00 GMT", 0.0),
        ("Fri, 02 Jan 2026 04:04:15 +0100", 10.0),
        ("Fri, 02 Jan 2026 03:04:06 -0000", 1.0),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert parse_retry_after(value, now=now) == seconds
