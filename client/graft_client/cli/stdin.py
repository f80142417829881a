"""What is wrong with text that comes from stdin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def reading_text() -> Iterator[None]:
    """Refuses bytes that are no text.

    Raises:
        click.UsageError: the body read such bytes.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"stdin is not {error.encoding.upper()}: {error.reason}, at byte {error.start}"
        ) from None
