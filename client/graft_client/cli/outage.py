"""A server that has answered before and is away now, for instance while it is restarted."""

from __future__ import annotations

import time
from collections.abc import Callable

from graft_client.cli import render
from graft_client.errors import BusyError, ConnectError, GraftError, ServerError

#: Seconds after which a server that is away is given up: more than one needs to load a large base model.
PATIENCE = 600.0
#: Seconds between two tries.
_TRY_EVERY = 1.5
#: How a proxy says that the server behind it does not answer.
_GATEWAY = (502, 504)


class Outage:
    """How long the server at ``url`` has been away. ``say`` is told of it once each time; ``advice`` is what a person
    can do when it is given up."""

    def __init__(self, url: str, say: Callable[[str], None], advice: str) -> None:
        self._url = url
        self._say = say
        self._advice = advice
        self._begun: float | None = None

    def over(self) -> None:
        """The server has answered."""
        self._begun = None

    def wait(self, error: GraftError) -> None:
        """Waits a moment before the next try.

        Raises:
            ConnectError: the server has been away for too long.
            GraftError: ``error``, where it does not pass by waiting.
        """
        if not _passing(error):
            raise error
        now = time.monotonic()
        if self._begun is None:
            self._begun = now
            self._say(trouble(error, self._url))
        if now - self._begun >= PATIENCE:
            away = render.duration(PATIENCE)
            raise ConnectError(f"{self._url} was away for {away} ({error}); {self._advice}") from error
        time.sleep(_TRY_EVERY)


def trouble(error: GraftError, url: str) -> str:
    """Why the server is asked again, in a few words."""
    if isinstance(error, ConnectError):
        return f"can't reach {url}, retrying"
    return render.printable(f"{error}; retrying")


def _passing(error: GraftError) -> bool:
    return isinstance(error, ConnectError | BusyError) or (isinstance(error, ServerError) and error.status in _GATEWAY)
