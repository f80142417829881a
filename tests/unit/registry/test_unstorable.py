"""What has no place in a database is in neither of them, and is refused as such."""

from __future__ import annotations

import pytest

from graft_server.registry import Registry
from graft_server.registry.errors import UnknownError, UnstorableError


def test_numbers_beyond_64_bits(registry: Registry) -> None:
    with pytest.raises(UnstorableError):
        registry.pin("x", 2**64)


def test_a_nul_in_a_name_is_never_a_fault(registry: Registry) -> None:
    # SQLite looks for it and finds nothing, PostgreSQL can't even be asked.
    with pytest.raises((UnknownError, UnstorableError)):
        registry.adapter("\0")
