"""What the registry said last, for while its database does not answer: who was served goes on being served."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, TypeVar

from graft_server.registry.errors import UnavailableError, UnknownError
from graft_server.registry.visibility import visible

T = TypeVar("T")

#: Questions whose answers are kept.
_MOST = 10_000
#: Seconds between two tries of a database that does not answer: its driver may take some to give up.
_PAUSE = 1.0


class Remembered:
    """Answers to questions, each for what the asking request may see. Threads may share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._answers: OrderedDict[Hashable, Any] = OrderedDict()
        self._away = False
        self._try_at = float("-inf")

    def __call__(self, question: Hashable, ask: Callable[[], T]) -> T:
        """What ``ask`` gives; while the database is away, what it gave to the same question the last time.

        Raises:
            UnavailableError: the database is away, and this was never asked.
        """
        key = (question, visible.get())
        known, remembered = self._recall(key)
        if known and not self._may_try():
            return remembered  # type: ignore[no-any-return]
        try:
            answer = ask()
        except UnavailableError:
            self._away = True
            self._try_at = time.monotonic() + _PAUSE
            if known:
                return remembered  # type: ignore[no-any-return]
            raise
        except UnknownError:
            self._away = False
            with self._lock:
                self._answers.pop(key, None)
            raise
        self._away = False
        with self._lock:
            self._answers[key] = answer
            self._answers.move_to_end(key)
            if len(self._answers) > _MOST:
                self._answers.popitem(last=False)
        return answer

    def _recall(self, key: Hashable) -> tuple[bool, Any]:
        with self._lock:
            return key in self._answers, self._answers.get(key)

    def _may_try(self) -> bool:
        """Of all who ask while the database is away one finds out whether it is back; the others do not wait."""
        with self._lock:
            if self._away and time.monotonic() < self._try_at:
                return False
            self._try_at = time.monotonic() + _PAUSE
            return True
