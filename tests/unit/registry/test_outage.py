"""PostgreSQL goes away and comes back."""

from __future__ import annotations

import time

import pytest

from graft_server.problems import as_problem
from graft_server.registry import Registry, RegistryError
from graft_server.registry.database import Database
from graft_server.registry.errors import InvalidDatabaseError, UnavailableError
from graft_server.registry.models import Setting
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


def test_a_writer_that_was_stopped_does_not_keep_others_from_writing(
    postgres: PostgreSQL, tmp_path, make_folder, lineage, monkeypatch: pytest.MonkeyPatch
):
    url = postgres.new_database()
    first, second = (Registry.open(tmp_path / name, url, (tmp_path / "shared").as_uri()) for name in ("a", "b"))
    # Not earlier: opening migrates, and a migration on a busy machine may pause for longer than this.
    monkeypatch.setattr("graft_server.registry.database.IDLE_WRITER_MS", 500)

    def stopped_in_the_middle() -> None:
        with first._database.write() as session:
            assert session.get(Setting, "late") is None
            before = time.monotonic()
            assert second.publish("x", make_folder(), lineage).ref == "x@1"
            assert 0.2 < time.monotonic() - before < 5
            session.add(Setting(key="late", value="1"))

    with pytest.raises(UnavailableError):
        stopped_in_the_middle()
    assert second.get_setting("late") is None
    first.set_setting("late", "2")
    assert second.get_setting("late") == "2"
    first.close()
    second.close()
