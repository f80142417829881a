"""When to send a request again, and how long to wait before."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from graft_client.errors import AnswerTimeoutError, BusyError, ConnectError, GraftError


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential back-off with "equal" jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015).

    A server that says when to come back (``Retry-After``, RFC 9110 section 10.2.3) is taken at its word, up
    to ``longest`` seconds.
    """

    retries: int = 3
    first: float = 0.25
    longest: float = 30.0

    def delay(self, error: GraftError, attempt: int, *, draw: Callable[[], float] = random.random) -> float | None:
        """Seconds to wait after failure number ``attempt`` (from 0), or None where trying again is no use."""
        if attempt >= self.retries or not _passing(error):
            return None
        if isinstance(error, BusyError) and error.retry_after is not None:
            return min(error.retry_after, self.longest)
        ceiling = min(self.longest, self.first * 2.0**attempt)
        return ceiling * (0.5 + 0.5 * draw())


def _passing(error: GraftError) -> bool:
    """Whether the reason may be gone in a moment. After a time-out the server may still be at work."""
    return isinstance(error, BusyError | ConnectError) and not isinstance(error, AnswerTimeoutError)


def parse_retry_after(value: str | None, *, now: datetime | None = None) -> float | None:
    """Seconds from a ``Retry-After`` header, a number of seconds or an HTTP date; None where it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        if date.tzinfo is None:  # "-0000" is UTC of unknown origin, by RFC 5322 section 3.3
            date = date.replace(tzinfo=UTC)
        seconds = (date - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if seconds == seconds else None
