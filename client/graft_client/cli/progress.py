"""Progress on stderr: a bar with the time left on a terminal, now and then a line elsewhere, nothing for scripts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from graft_client.cli.render import duration

if TYPE_CHECKING:
    from graft_client.bench.records import Measurements
    from graft_client.cli.session import Session

_LINE_EVERY = 10.0


@contextmanager
def byte_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function to tell of bytes sent. Shows nothing where there is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def count_bar(session: Session, label: str, total: int, *, start: int = 0) -> Iterator[Callable[[int, int], None]]:
    """Yields a function to tell how many of how many are done. ``start`` were done before."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total or None, completed=start)
            yield lambda done, of: bar.update(task, completed=done, total=of or None)
        return

    begun = last = time.monotonic()

    def tell(done: int, of: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _LINE_EVERY or done <= start:
            return
        last = now
        left = (now - begun) / (done - start) * (of - done)
        session.note(f"{label}: {done} of {of}, {duration(left)} left")

    yield tell


@contextmanager
def load_bar(
    session: Session, *, requests: int | None, seconds: float | None
) -> Iterator[Callable[[Measurements], None]]:
    """Yields a function to show a load test's progress with: requests done, rates and the time left.

    The test ends with ``requests`` or after ``seconds``, whichever comes first.
    """

    def shown(so_far: Measurements) -> tuple[float, str]:
        done, elapsed = len(so_far.records), so_far.seconds
        part = min(1.0, max(done / requests if requests else 0.0, elapsed / seconds if seconds else 0.0))
        left = f"{duration(elapsed / part * (1 - part))} left" if 0 < part < 1 else f"{so_far.sent - done} in flight"
        rates = f"{done / elapsed:.1f} requests/s  {so_far.chunks / elapsed:.0f} tok/s" if elapsed else ""
        return part, f"{done} done  {rates}  {left}"

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("warming up", total=1.0, figures="")

            def update(so_far: Measurements) -> None:
                part, figures = shown(so_far)
                bar.update(task, description="measuring", completed=part, figures=figures)

            yield update
        return

    last = time.monotonic()

    def tell(so_far: Measurements) -> None:
        nonlocal last
        if time.monotonic() - last >= _LINE_EVERY:
            last = time.monotonic()
            session.note(shown(so_far)[1])

    yield tell


class TrainingBar:
    """A training job's steps, loss, speed and time left. Use it in a ``with`` block."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._last = 0.0
        self._phase = ""
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("queued", total=None, figures="")

    def __enter__(self) -> TrainingBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, phase: str, step: int, total: int, figures: str) -> None:
        """Shows where the job stands."""
        if self._bar is not None:
            self._bar.update(self._task, description=phase, completed=step, total=total or None, figures=figures)
            return
        now = time.monotonic()
        if phase != self._phase or now - self._last >= _LINE_EVERY:
            self._phase, self._last = phase, now
            steps = f" step {step} of {total}" if total else ""
            self._session.note(f"{phase}{steps}  {figures}".rstrip())

    def phase(self, name: str) -> None:
        """The job entered another state."""
        if self._bar is not None:
            self._bar.update(self._task, description=name, figures="")
        elif name != self._phase:
            self._phase = name
            self._session.note(name)

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self._session.note(text)
