"""The buckets of all keys and adapters, as pure state: a request takes what it asks for out of all that concern it, or
out of none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from graft_client.schemas.limits import Limits
from graft_server.quotas.bucket import Bucket, Reserved

Figure = Literal["requests", "tokens"]


class Rate(NamedTuple):
    """What a field of ``Limits`` counts, and in how many seconds."""

    figure: Figure
    period: float
    period_name: str


RATES: dict[str, Rate] = {
    "requests_per_minute": Rate("requests", 60.0, "minute"),
    "tokens_per_minute": Rate("tokens", 60.0, "minute"),
    "tokens_per_day": Rate("tokens", 86400.0, "day"),
}

#: Buckets that are kept without looking whether they are needed.
_FEW = 1024


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose bucket it is."""

    kind: Literal["key", "adapter"]
    name: str


class Claim(NamedTuple):
    """Somebody whom a request concerns, and their limits with no defaults left open."""

    owner: Owner
    limits: Limits


class LimitError(Exception):
    """A request does not fit in. ``retry_after`` is in seconds, ``None`` where it never will."""

    def __init__(self, owner: Owner, rate: Rate, limit: int, wanted: int, retry_after: float | None) -> None:
        super().__init__(f"{owner.kind} {owner.name}: {limit} {rate.figure} a {rate.period_name}")
        self.owner = owner
        self.rate = rate
        self.limit = limit
        self.wanted = wanted
        self.retry_after = retry_after


class Holding:
    """What a request holds of the buckets."""

    def __init__(self, held: Sequence[tuple[Rate, Bucket, Reserved]]) -> None:
        self._held = held

    def settle(self, *, requests: int, tokens: int) -> None:
        """The request is over and counts as this many requests and tokens."""
        for rate, bucket, reserved in self._held:
            bucket.settle(reserved, requests if rate.figure == "requests" else tokens)


class Ledger:
    """See the module. ``now`` is in seconds of a clock that does not go back."""

    def __init__(self) -> None:
        self._share = 1.0
        #: With the limit: requests that began before it was changed go on by that of then.
        self._buckets: dict[tuple[Owner, Rate, int], Bucket] = {}
        self._look_at = _FEW

    def __len__(self) -> int:
        return len(self._buckets)

    def reserve(self, claims: Sequence[Claim], *, requests: int, tokens: int, now: float) -> Holding:
        """Take a request out of every bucket of ``claims``.

        Raises:
            LimitError: it does not fit into one of them, and nothing was taken. Of several it is the one where the
                wait is longest.
        """
        found = [
            (claim.owner, rate, bucket, requests if rate.figure == "requests" else tokens)
            for claim in claims
            for rate, bucket in self.buckets(claim, now)
        ]
        refusals = []
        for owner, rate, bucket, units in found:
            never = units > bucket.limit
            wait = bucket.wait(units, now)
            if never or wait > 0:
                refusals.append(LimitError(owner, rate, bucket.limit, units, None if never else wait))
        if refusals:
            raise max(refusals, key=lambda error: float("inf") if error.retry_after is None else error.retry_after)
        return Holding([(rate, bucket, bucket.reserve(units, now)) for _, rate, bucket, units in found])

    def buckets(self, claim: Claim, now: float) -> list[tuple[Rate, Bucket]]:
        """The buckets of one owner. One whose limit has changed begins full."""
        found = []
        for field, rate in RATES.items():
            limit: int | None = getattr(claim.limits, field)
            if not limit:
                continue
            key = (claim.owner, rate, limit)
            bucket = self._buckets.get(key)
            if bucket is None:
                bucket = self._buckets[key] = Bucket(limit, rate.period, self._share)
                self._forget(now)
            found.append((rate, bucket))
        return found

    def share_out(self, share: float, now: float) -> None:
        """Enforce this share of every limit from now on: others enforce the rest."""
        self._share = share
        for bucket in self._buckets.values():
            bucket.share_out(share, now)

    def _forget(self, now: float) -> None:
        """Drop the buckets that are as new ones, once there are twice as many as the last time."""
        if len(self._buckets) > self._look_at:
            newest = next(reversed(self._buckets))
            self._buckets = {
                key: bucket for key, bucket in self._buckets.items() if key == newest or not bucket.idle(now)
            }
            self._look_at = max(_FEW, 2 * len(self._buckets))
