"""The two commands that import the server's packages do so inside, and this says what to install for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def server_installed() -> Iterator[None]:
    """Says what to install where one of the server's packages is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("graft_"):
            raise
        raise click.ClickException(
            f"the server's packages are not installed ({error.name} is missing);"
            " install them with: pip install 'graftwork[server]'"
        ) from error
