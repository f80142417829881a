"""A discrete-event simulation of an engine behind the gate, without torch: what its policy does to waiting and speed.

A step computes a token of every sequence that is in the batch and takes ``fixed + row * rows`` seconds, with a row for
each token of a prompt that joins. The defaults are what the torch engine takes for a model of 135 million parameters on
two CPU cores: 60 ms for 8 rows, 200 ms for 64. Adapters are read one at a time and the least recently used leaves.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from graft_server.admission.gate import Gate
from graft_server.admission.queues import Adapter, Ticket


@dataclass(eq=False)
class Job:
    """One request: whose it is, how much it computes, and when it came, was let in and was answered."""

    adapter: Adapter
    prompt: int
    answer: int
    background: bool = False
    arrived: float = 0.0
    admitted: float = 0.0
    ended: float = 0.0
    begun: float = 0.0
    left: int = 0
    then: Callable[[], None] = field(default=lambda: None)

    @property
    def latency(self) -> float:
        return self.ended - self.arrived


class Simulation:
    """Time goes by steps of the engine; arrivals are let in between two of them."""

    def __init__(
        self, gate: Gate, *, fixed: float = 0.04, row: float = 0.0025, load_seconds: float = 0.0, seed: int = 0
    ) -> None:
        self.gate = gate
        self.now = 0.0
        self.done: list[Job] = []
        self.random = random.Random(seed)
        self._fixed, self._row, self._load_seconds = fixed, row, load_seconds
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._jobs: dict[Ticket, Job] = {}
        self._batch: list[tuple[Ticket, Job]] = []
        self._resident: OrderedDict[Adapter, float] = OrderedDict()
        self._loader_free = 0.0

    # Work

    def at(self, time: float, what: Callable[[float], None]) -> None:
        """Do something when ``time`` has come, or the first step after it has ended; it is told the time."""
        heapq.heappush(self._events, (time, next(self._numbers), what))

    def send(self, job: Job, arrived: float = 0.0) -> None:
        """A request arrives, now or in the middle of the last step."""
        job.arrived, job.left = arrived, job.answer
        ticket = self.gate.offer(job.adapter, job.prompt + job.answer, background=job.background, now=self.now)
        self._jobs[ticket] = job
        self._admit()

    def closed_loop(
        self,
        adapter: Adapter,
        clients: int,
        *,
        prompt: int = 30,
        answer: int = 32,
        think: float = 0.0,
        start: float = 0.0,
        background: bool = False,
    ) -> None:
        """Clients that send the next request when the last one is answered, after ``think`` seconds on average.

        Answers are half to one and a half times ``answer`` long.
        """

        def ask(time: float) -> None:
            length = self.random.randint(answer // 2, answer + answer // 2)
            self.send(Job(adapter, prompt, length, background, then=again), time)

        def again() -> None:
            self.at(self.now + (self.random.expovariate(1 / think) if think else 0.0), ask)

        for _ in range(clients):
            self.at(start + (self.random.random() * think if think else 0.0), ask)

    # Time

    def run(self, until: float) -> None:
        """Go on until that time, or until there is nothing left to do."""
        while self.now < until and (self._batch or self._events):
            self._arrivals()
            ready = [(ticket, job) for ticket, job in self._batch if self._resident.get(job.adapter, 0.0) <= self.now]
            if not ready:
                times = [self._resident[job.adapter] for _, job in self._batch]
                times += [self._events[0][0]] if self._events else []
                self.now = max(self.now, min(times))
                continue
            fresh = [job for _, job in ready if not job.begun]
            rows = len(ready) + sum(job.prompt for job in fresh)
            self.now += self._fixed + self._row * rows
            for job in fresh:
                job.begun = self.now
            for ticket, job in ready:
                job.left -= 1
                if not job.left:
                    self._end(ticket, job)

    def _arrivals(self) -> None:
        while self._events and self._events[0][0] <= self.now:
            time, _, what = heapq.heappop(self._events)
            what(time)

    def _admit(self) -> None:
        for ticket in self.gate.admit(self.now):
            job = self._jobs[ticket]
            job.admitted = self.now
            self._batch.append((ticket, job))
            self._load(job.adapter)

    def _load(self, adapter: Adapter) -> None:
        """From when on an adapter is in its slot."""
        if adapter is None:
            return
        if adapter not in self._resident:
            self._loader_free = max(self.now, self._loader_free) + self._load_seconds
            self._resident[adapter] = self._loader_free
            used = {job.adapter for _, job in self._batch}
            while len(self._resident) > self.gate.slots:
                del self._resident[next(each for each in self._resident if each not in used)]
        self._resident.move_to_end(adapter)

    def _end(self, ticket: Ticket, job: Job) -> None:
        job.ended = self.now
        self._batch.remove((ticket, job))
        self.done.append(job)
        del self._jobs[ticket]
        steps = job.answer - 1
        self.gate.release(ticket, self.now, token_seconds=(self.now - job.begun) / steps if steps >= 8 else None)
        self._admit()
        job.then()
