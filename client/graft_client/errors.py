"""User-facing errors, with one base class. Their text is one clear sentence that can be printed as it is."""

from __future__ import annotations

from graft_client.schemas.common import FieldError, Problem


class GraftError(Exception):
    """Anything that went wrong and that a user can understand. ``exit_code`` is the command line's."""

    exit_code = 1


class UsageError(GraftError):
    """The caller asked for something that makes no sense; nothing was sent."""

    exit_code = 2


class DataError(GraftError):
    """A local file does not hold what it should; the text names the file and the line."""

    exit_code = 5


class ConnectError(GraftError):
    """No server answered at the URL."""

    exit_code = 3


class AnswerTimeoutError(ConnectError):
    """A server took the request and sent nothing for longer than the client's ``timeout``."""


class ProtocolError(GraftError):
    """What answers at the URL does not speak graftwork's protocol, or broke off in the middle of it."""


class ServerError(GraftError):
    """The server answered with a problem document."""

    def __init__(self, problem: Problem, *, retry_after: float | None = None) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        return self.problem.status

    @property
    def code(self) -> str:
        return self.problem.code

    @property
    def errors(self) -> list[FieldError]:
        return self.problem.errors


class AccessError(ServerError):
    """The server wants a key, or one that may do more (401, 403)."""

    exit_code = 8


class NotFoundError(ServerError):
    """An adapter, version, task, dataset or job that does not exist (404)."""

    exit_code = 4


class InvalidError(ServerError):
    """The request, the data or the adapter was refused (400, 409, 413, 415, 422)."""

    exit_code = 5


class BusyError(ServerError):
    """The server is full, draining or not ready (429, 503)."""

    exit_code = 6


class JobFailedError(GraftError):
    """A training job failed or was cancelled."""

    exit_code = 7
