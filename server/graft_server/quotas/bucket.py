"""One limit, as pure state: so many units in a period, from a bucket that holds as many and refills all the time.

It is the generic cell rate algorithm in its virtual scheduling form (ITU-T I.371, annex A; ATM Forum Traffic Management
4.0, section 4.4.3): all that is known of the past is the *theoretical arrival time* at which the bucket would be full
again. Arriving at ``now`` with a cost of ``c`` seconds makes it ``max(tat, now) + c``, and is refused where that lies
more than a period ahead.

Costs are reserved before it is known what a request uses. So what came since the oldest request that is still open is
kept, as functions of the theoretical arrival time: ``x -> max(x + add, floor)``, which are closed under composition.
When a request settles, its own is changed to what was really used and the time is computed anew: the bucket is then as
if the request had asked for just that when it came. A plain refund would not do: it gives back units that have come
back by themselves since, and lets more than a bucket through at once.

Where several servers enforce one limit, each has a ``share`` of it: its bucket holds that share and refills at that
rate. A request of more units than the share, but no more than the limit, fits into a full bucket and is a debt that is
paid back at the bucket's rate, so that a limit lets the same requests through whatever the number of servers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Reserved:
    """What one request holds of a bucket: ``units``, each for so many ``seconds``, from when it came until it
    settles."""

    units: float
    seconds: float
    add: float
    floor: float
    open: bool = True

    def after(self, tat: float) -> float:
        """The theoretical arrival time behind this request."""
        return max(tat + self.add, self.floor)

    def then(self, later: Reserved) -> None:
        """Take in a request that came right behind this one, where both are over."""
        self.floor = max(self.floor + later.add, later.floor)
        self.add += later.add


class Bucket:
    """A ``share`` of ``limit`` units in ``period`` seconds. Times are seconds of any clock that does not go back."""

    def __init__(self, limit: int, period: float, share: float = 1.0) -> None:
        self.limit = limit
        self.period = period
        self.share = share
        self._seconds = period / (limit * share)
        self._tat = float("-inf")
        #: The theoretical arrival time before the first of the steps, and what came since, the oldest first.
        self._before = self._tat
        self._steps: list[Reserved] = []

    def wait(self, units: float, now: float) -> float:
        """Seconds until ``units`` fit in, if nothing settles and nothing else comes; 0 where they do now. Units beyond
        the limit never fit."""
        cost = units * self._seconds
        if units <= self.limit:
            cost = min(cost, self.period)
        over = max(self._tat, now) + cost - now - self.period
        return over if over > self._rounding(now) else 0.0

    def reserve(self, units: float, now: float) -> Reserved:
        """Take units out, whether they fit in or not: ask ``wait`` first. Settle them later, in any order."""
        cost = units * self._seconds
        step = Reserved(units, self._seconds, cost, now + cost)
        if not self._steps:
            self._before = self._tat
        self._steps.append(step)
        self._tat = step.after(self._tat)
        return step

    def settle(self, step: Reserved, units: float) -> None:
        """The request is over and has used ``units``, more or less than it had reserved."""
        change = (units - step.units) * step.seconds
        step.units, step.open = units, False
        step.add += change
        step.floor += change
        # What is over is one function with its neighbours that are, or a part of what came before all others.
        steps, place = self._steps, self._steps.index(step)
        if place + 1 < len(steps) and not steps[place + 1].open:
            step.then(steps.pop(place + 1))
        if place and not steps[place - 1].open:
            steps[place - 1].then(steps.pop(place))
        if not steps[0].open:
            self._before = steps.pop(0).after(self._before)
        # Written out, as there may be thousands: the same as ``after`` of each.
        tat = self._before
        for each in steps:
            tat += each.add
            if tat < each.floor:
                tat = each.floor
        self._tat = tat

    @property
    def capacity(self) -> int:
        """Whole units of a full bucket, one at least."""
        return max(1, min(self.limit, int(self.limit * self.share + 1e-6)))

    def remaining(self, now: float) -> int:
        """Whole units that fit in now without a debt; one where the bucket is full and holds less."""
        room = max(0.0, self.period - max(0.0, self._tat - now))
        if room + self._rounding(now) >= self.period:
            return self.capacity
        return min(self.limit, int((room + self._rounding(now)) / self._seconds))

    def share_out(self, share: float, now: float) -> None:
        """Have another share of the limit from now on. Of a smaller one as much is left, in proportion, as was of the
        larger: the rest is for the others. A larger one has no more units in it, for what others had left is not known.
        So of all servers together no change lets more through than the bucket of a new one."""
        if share == self.share:
            return
        before, self.share = self._seconds, share
        self._seconds = self.period / (self.limit * share)
        ratio = self._seconds / before
        left = self.period - max(0.0, self._tat - now)
        if ratio < 1 or left < 0:
            left *= ratio
        self._tat = self._before = now + self.period - left
        # What was reserved is in there. Later it is given back in the smaller unit, and so never in excess.
        self._steps = [step for step in self._steps if step.open]
        for step in self._steps:
            step.seconds, step.add, step.floor = min(step.seconds, self._seconds), 0.0, float("-inf")

    def reset(self, now: float) -> float:
        """Seconds until the bucket is full, if nothing settles and nothing else comes."""
        return max(0.0, self._tat - now)

    def _rounding(self, now: float) -> float:
        """Seconds that sums of such times may be wrong by: a unit that is there must not be missed for them."""
        return 1e-6 * self._seconds + 4 * math.ulp(now)

    def idle(self, now: float) -> bool:
        """Whether the bucket is as a new one."""
        return not self._steps and self._tat <= now
