"""Asking before something is deleted."""

from __future__ import annotations

import sys

import click


def confirmed(question: str, *, yes: bool) -> None:
    """Asks on a terminal; a script must have said ``--yes``. Returns where the answer is yes, else ends the command."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("this deletes something and there is no terminal to ask on; give --yes")
    if not click.confirm(question, err=True):
        raise click.ClickException("nothing was deleted")
