"""Errors that a caller is told about: one exception, and one table from each stable code to its HTTP status.

Every room of the server raises ``ProblemError`` (or an error of its own that ``as_problem`` knows); only ``api``
turns it into a document.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from graft_client.schemas.common import FieldError
from graft_plugins.errors import UnknownNameError
from graft_server.admission.gate import FullError
from graft_server.engine.base import EngineError
from graft_server.registry.errors import (
    ConflictError,
    CorruptArtefactError,
    InvalidNameError,
    RefusedArtefactError,
    StorageFullError,
    StoreUnavailableError,
    UnavailableError,
    UncertainError,
    UnknownError,
    UnstorableError,
)
from graft_server.training.options import OptionError

#: Code -> HTTP status and title. The codes are part of the API and never change their meaning.
CODES: dict[str, tuple[int, str]] = {
    "invalid-json": (400, "The body is not JSON"),
    "invalid-form": (400, "The body is not a well-formed form"),
    "unauthorized": (401, "A valid key is needed"),
    "forbidden": (403, "The key may not do this"),
    "unknown-route": (404, "No such route"),
    "unknown-adapter": (404, "No such adapter"),
    "unknown-version": (404, "No such adapter version"),
    "unknown-route-name": (404, "No such route of requests"),
    "unknown-task": (404, "No such task"),
    "unknown-dataset": (404, "No such dataset"),
    "unknown-job": (404, "No such job"),
    "unknown-file": (404, "No such file"),
    "unknown-batch": (404, "No such batch"),
    "unknown-response": (404, "No such response"),
    "unknown-key": (404, "No such key"),
    "method-not-allowed": (405, "The route does not take this method"),
    "conflict": (409, "In conflict with what exists"),
    "gate-refused": (409, "The version is not good enough to be promoted"),
    "undecided": (409, "It is not clear which adapter is meant"),
    "task-mismatch": (409, "The adapter serves another task"),
    "task-missing": (409, "The adapter's task is not installed"),
    "body-too-large": (413, "The request body is too large"),
    "unsupported-media-type": (415, "The body has the wrong media type"),
    "invalid-request": (422, "The request is not valid"),
    "previous-response-not-found": (422, "The response to go on from is not kept"),
    "unknown-parameter": (422, "No such parameter"),
    "unsupported-parameter": (422, "The parameter is not supported"),
    "invalid-name": (422, "The name is not valid"),
    "invalid-data": (422, "The data can't be used"),
    "invalid-option": (422, "An option is not valid"),
    "invalid-adapter": (422, "The adapter's files can't be used"),
    "unknown-option": (422, "No such option"),
    "unknown-method": (422, "No such adapter method"),
    "unknown-format": (422, "No such data format"),
    "unservable": (422, "The engine can't serve this"),
    "prompt-too-long": (422, "The prompt does not fit the context"),
    "beyond-limit": (422, "The request is larger than a limit"),
    "overloaded": (429, "Too many requests are waiting"),
    "rate-limited": (429, "A limit of requests or tokens is reached"),
    "adapter-unloadable": (500, "The adapter can't be loaded"),
    "plugin-fault": (500, "A plugin failed"),
    "engine-error": (500, "The engine failed"),
    "internal": (500, "Internal error"),
    "engine-died": (502, "The engine's process ended"),
    "engine-unavailable": (503, "The engine is not running"),
    "registry-unavailable": (503, "The registry's database does not answer"),
    "artefacts-unavailable": (503, "The artefact store does not answer"),
    "not-ready": (503, "The server is not ready"),
    "draining": (503, "The server is shutting down"),
    "deadline-exceeded": (504, "The request's time is over"),
    "storage-full": (507, "The disk is full"),
}


class ProblemError(Exception):
    """Something a caller is told, in one sentence. ``code`` is a key of ``CODES``; ``retry_after`` in seconds."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        nearest: str | None = None,
        errors: Sequence[FieldError] = (),
        retry_after: float | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.title = CODES[code]
        self.code = code
        self.detail = detail
        self.nearest = nearest
        self.errors = list(errors)
        self.retry_after = retry_after
        self.param = param


def as_problem(error: BaseException) -> ProblemError | None:
    """The problem that an error of another room stands for, or ``None`` where it is a fault of the server."""
    match error:
        case ProblemError():
            return error
        case UnknownError() | UnknownNameError():
            # The last word: an "adapter version" is a version. "unknown-route" is another thing:
            # a path that this server does not answer.
            kind = error.kind.split()[-1]
            code = "unknown-route-name" if kind == "route" else f"unknown-{kind}"
            return ProblemError(code if code in CODES else "invalid-request", str(error), nearest=error.nearest)
        case FullError():
            return ProblemError("overloaded", str(error), retry_after=error.retry_after)
        case OptionError():
            place = FieldError(place=f"options.{error.name}", message=str(error))
            return ProblemError(error.code, str(error), nearest=error.nearest, errors=[place])
        case UnstorableError():
            return ProblemError("invalid-request", str(error))
        case InvalidNameError():
            return ProblemError("invalid-name", str(error))
        case StoreUnavailableError():
            return ProblemError(
                "artefacts-unavailable",
                "the artefact store does not answer; what is loaded or in the cache is served, try the rest again soon",
                retry_after=5,
            )
        case UncertainError():
            detail = "the registry's database went away during the change, which may have been made: look first"
            return ProblemError("registry-unavailable", detail)
        case UnavailableError():
            # Which database it is stands in the log.
            return ProblemError(
                "registry-unavailable",
                "the registry's database does not answer; nothing was changed, try again soon",
                retry_after=2,
            )
        case StorageFullError():
            return ProblemError("storage-full", str(error))
        case RefusedArtefactError():
            return ProblemError("invalid-adapter", str(error))
        case CorruptArtefactError():
            return ProblemError("adapter-unloadable", str(error))
        case ConflictError():
            return ProblemError("conflict", str(error))
        case EngineError():
            retry = 2.0 if error.code in ("engine-unavailable", "engine-died") else None
            code = error.code if error.code in CODES else "engine-error"
            return ProblemError(code, str(error), retry_after=retry)
        case UnicodeEncodeError():
            # JSON can write half of a surrogate pair; no text that leaves this process can.
            return ProblemError("invalid-request", "the request's text has half of a surrogate pair, no character")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return ProblemError("storage-full", "the server's disk is full; free some space and try again")
        case _:
            return None
