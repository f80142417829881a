"""How many tokens an engine has generated, and how fast lately."""

from __future__ import annotations

import time
from collections import deque

#: Seconds over which the rate is taken.
_WINDOW = 10.0


class TokenRate:
    """``total`` tokens so far."""

    def __init__(self) -> None:
        self.total = 0
        self._recent: deque[tuple[float, int]] = deque()

    def add(self, tokens: int) -> None:
        """So many were generated just now."""
        now = time.monotonic()
        self.total += tokens
        self._recent.append((now, tokens))
        self._forget(now)

    @property
    def per_second(self) -> float:
        """The mean of the last seconds."""
        self._forget(time.monotonic())
        return sum(tokens for _, tokens in self._recent) / _WINDOW

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - _WINDOW:
            self._recent.popleft()
