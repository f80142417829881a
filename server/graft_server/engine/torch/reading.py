"""One adapter on its way into host memory: its files fetched by a thread, then read in pieces between the steps.

Only the disk is waited for in a thread. Checking and converting hundreds of small matrices there would take the
interpreter's lock from the steps at every one of them, and a step that computes on all cores waits for its slowest: on
two cores, steps took 40 % longer while an adapter of 27 ms of work was read beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TypeAlias

from graft_server.engine.base import AdapterSource, EngineError
from graft_server.engine.torch.resident import ResidentAdapter

#: What comes of a version's files, with a ``yield`` wherever the work may rest.
Pieces: TypeAlias = Generator[None, None, ResidentAdapter]
#: Told what is wrong with a version, or ``None``.
OnChecked: TypeAlias = Callable[[EngineError | None], None]


class Reading:
    """A version that is being read; ``on_checked`` where it is only read for the sake of its errors."""

    def __init__(
        self, source: AdapterSource, fetched: Future[None], pieces: Pieces, on_checked: OnChecked | None = None
    ) -> None:
        self.source = source
        self.on_checked = on_checked
        self.started = time.monotonic()
        self.result: ResidentAdapter | None = None
        self.error: Exception | None = None
        self._fetched = fetched
        self._pieces = pieces

    @property
    def ready(self) -> bool:
        """Its files are at hand."""
        return self._fetched.done()

    def work(self, seconds: float, clock: Callable[[], float]) -> bool:
        """Read until it is whole, or ``seconds`` are over; returns whether it is whole, or has failed."""
        until = clock() + seconds
        try:
            self._fetched.result()
            while clock() < until:
                next(self._pieces)
        except StopIteration as end:
            self.result = end.value
            return True
        except Exception as error:
            self.error = error
            return True
        return False
