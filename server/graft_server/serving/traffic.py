"""The requests in progress by adapter version, and what they generated lately. Pure state, without a clock."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

#: Seconds over which tokens a second are taken.
_WINDOW = 10.0
#: Tokens are gathered in spans of this many seconds, so that memory does not grow with the speed.
_SPAN = 0.25


@dataclass(slots=True, eq=False)
class Flight:
    """A request from its arrival to its end. ``ref`` is ``name@N`` or ``base``."""

    ref: str
    arrived: float
    running: bool = False
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """What one adapter version has to do."""

    running: int
    waiting: int
    tokens_per_second: float


class Traffic:
    """Counts flights. The caller gives the time, in seconds of any monotonic clock."""

    def __init__(self) -> None:
        #: In order of arrival.
        self._waiting: dict[Flight, None] = {}
        self._running: Counter[str] = Counter()
        self._recent: deque[tuple[float, Counter[str]]] = deque()

    def arrive(self, ref: str, now: float) -> Flight:
        """A request waits from now on to enter the engine."""
        flight = Flight(ref, now)
        self._waiting[flight] = None
        return flight

    def enter(self, flight: Flight) -> None:
        """The request is in the engine."""
        del self._waiting[flight]
        flight.running = True
        self._running[flight.ref] += 1

    def generated(self, flight: Flight, tokens: int, now: float) -> None:
        """The request has this many tokens by now; fewer than before are no news."""
        fresh = tokens - flight.tokens
        if fresh <= 0:
            return
        flight.tokens = tokens
        if not self._recent or now - self._recent[-1][0] >= _SPAN:
            self._recent.append((now, Counter()))
            self._forget(now)
        self._recent[-1][1][flight.ref] += fresh

    def leave(self, flight: Flight) -> None:
        """The request is over, wherever it was."""
        self._waiting.pop(flight, None)
        if flight.running:
            self._running[flight.ref] -= 1
            if not self._running[flight.ref]:
                del self._running[flight.ref]

    def in_flight(self, ref: str) -> int:
        """Requests for one version that are not over, those that wait among them."""
        return self._running[ref] + sum(flight.ref == ref for flight in self._waiting)

    def refs(self) -> set[str]:
        """The versions whose requests are not all over."""
        return {*self._running, *(flight.ref for flight in self._waiting)} - {"base"}

    def loads(self, now: float) -> dict[str, Load]:
        """Everything that has requests or had tokens within the last ten seconds."""
        self._forget(now)
        waiting = Counter(flight.ref for flight in self._waiting)
        tokens: Counter[str] = Counter()
        for _, counts in self._recent:
            tokens.update(counts)
        return {
            ref: Load(self._running[ref], waiting[ref], tokens[ref] / _WINDOW)
            for ref in (waiting | self._running | tokens)
        }

    def queue_age(self, now: float) -> float:
        """Seconds that the oldest waiting request has waited."""
        oldest = next(iter(self._waiting), None)
        return now - oldest.arrived if oldest is not None else 0.0

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] <= now - _WINDOW:
            self._recent.popleft()
