"""How far a long step at start-up is: a bar with the time left on a terminal, a log line now and then in a pipe."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

#: A line each time this much more is done.
_STEP = 0.25


class StartupProgress:
    """Takes ``(message, fraction)`` reports, ``fraction`` from 0 to 1 or ``None`` where it is not known."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._message = ""
        self._logged = 0.0

    def __enter__(self) -> StartupProgress:
        if sys.stderr.isatty():
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal; doing so twice is harmless."""
        if self._bar is not None:
            self._bar.stop()

    def report(self, message: str, fraction: float | None) -> None:
        """Show what is being done and how far it is."""
        if self._bar is not None:
            self._show(self._bar, message, fraction)
        elif message != self._message:
            self._logged = fraction or 0.0
            log.info("%s", message)
        elif fraction is not None and fraction - self._logged >= _STEP:
            self._logged = fraction
            log.info("%s: %.0f%%", message, 100 * fraction)
        self._message = message

    def _show(self, bar: Progress, message: str, fraction: float | None) -> None:
        if self._task is None or message != self._message:
            if self._task is not None:
                bar.remove_task(self._task)
            self._task = bar.add_task(message, total=None if fraction is None else 1.0)
        if fraction is not None:
            bar.update(self._task, total=1.0, completed=fraction)
