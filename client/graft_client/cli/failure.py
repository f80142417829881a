"""How an error looks at the end of a command: one sentence, its details, and an exit code; or one JSON object."""

from __future__ import annotations

import errno
import json
from typing import IO, Any

import click

from graft_client.errors import GraftError, ServerError, UsageError

_MOST_DETAILS = 20
#: How a disk says that it takes no more: full, a quota, a limit on files, broken.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Failure(click.ClickException):
    """An error of ours on its way to the terminal."""

    def __init__(self, error: GraftError, *, as_json: bool) -> None:
        super().__init__(explain(error))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click declares it for the class
        self._error = error
        self._as_json = as_json

    @classmethod
    def of(cls, error: Exception, *, as_json: bool) -> Failure | None:
        """The failure that ``error`` stands for, or None where it is a fault of the program."""
        match error:
            case GraftError():
                return cls(error, as_json=as_json)
            case click.UsageError():
                return cls(UsageError(error.format_message()), as_json=as_json)
            case click.ClickException():
                return cls(GraftError(error.format_message()), as_json=as_json)
            case OSError(errno=number) if error.filename is not None and number != errno.EPIPE:
                return cls(GraftError(f"{error.filename}: {error.strerror}"), as_json=as_json)
            # The system names no file where a write fails.
            case OSError(errno=number) if number in _FULL:
                return cls(GraftError(f"the output can't be written: {error.strerror}"), as_json=as_json)
            case _:
                return None

    def show(self, file: IO[Any] | None = None) -> None:
        if self._as_json:
            document: dict[str, Any] = {"detail": str(self._error), "exit_code": self.exit_code}
            if isinstance(self._error, ServerError):
                document |= self._error.problem.model_dump(mode="json")
            click.echo(json.dumps({"error": document}), file=file, err=file is None)
        else:
            super().show(file)


def explain(error: GraftError) -> str:
    """The error's sentence, with the nearest name and the places where something is wrong, a line each."""
    if not isinstance(error, ServerError):
        return str(error)
    problem = error.problem
    lines = [problem.detail]
    if problem.status == 401:
        # A command that asks a second server notes how that one's key is given.
        lines[0] += f"; {', '.join(getattr(error, '__notes__', ())) or 'set GRAFT_API_KEY, or give --api-key'}"
    if problem.nearest and problem.nearest not in problem.detail:
        lines[0] += f" Did you mean `{problem.nearest}`?"
    if len(problem.errors) == 1 and problem.errors[0].message in problem.detail:
        return lines[0]  # said already
    lines += [f"  {fault.place}: {fault.message}" for fault in problem.errors[:_MOST_DETAILS]]
    if len(problem.errors) > _MOST_DETAILS:
        lines.append(f"  and {len(problem.errors) - _MOST_DETAILS} more")
    return "\n".join(lines)
