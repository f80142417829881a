"""PostgreSQL goes away and comes back."""

from __future__ import annotations

import pytest

from graft_server.problems import as_problem
from graft_server.registry import Registry, RegistryError
from graft_server.registry.database import Database
from graft_server.registry.errors import InvalidDatabaseError, UnavailableError
from support.postgresql import PostgreSQL


def test_a_database_that_is_gone_for_a_while(postgres: PostgreSQL, tmp_path, make_folder, lineage):
    registry = Registry.open(tmp_path / "data", postgres.new_database())
    before = registry.publish("x", make_folder(), lineage)
    postgres.stop()
    try:
        with pytest.raises(UnavailableError) as reading:
            registry.resolve("x")
        with pytest.raises(UnavailableError):
            registry.publish("x", make_folder("more"), lineage)
        problem = as_problem(reading.value)
        assert problem is not None
        assert (problem.status, problem.code, problem.retry_after) == (503, "registry-unavailable", 2)
    finally:
        postgres.start()
    # By itself, at the first question; and nothing of what failed is left.
    assert registry.resolve("x") == before
    assert registry.collect_garbage(dry_run=True) == []
    assert registry.publish("x", make_folder("more"), lineage).ref == "x@2"
    registry.close()


@pytest.mark.parametrize("url", ["secret", "mysql://me:secret@host/name", "postgresql://me:secret@127.0.0.1:1/name"])
def test_no_message_tells_a_password(url: str):
    with pytest.raises(RegistryError) as caught:
        Database(url).migrate()
    assert isinstance(caught.value, InvalidDatabaseError | UnavailableError)
    assert "secret" not in str(caught.value)
