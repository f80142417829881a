"""PostgreSQL goes away and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from graft_server.problems import as_problem
from graft_server.registry import Registry, RegistryError
from graft_server.registry.database import Database
from graft_server.registry.errors import InvalidDatabaseError, UnavailableError, UncertainError
from graft_server.registry.models import Setting
from graft_server.registry.objects import ObjectStore
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


@contextmanager
def acknowledgement_lost(registry: Registry, table: str) -> Iterator[None]:
    """The next transaction that inserts into a table is committed, and nobody hears of it."""
    engine = registry._database._engine
    commit, inserted = engine.dialect.do_commit, False

    def watch(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal inserted
        inserted = inserted or statement.startswith(f"INSERT INTO {table}")

    def commit_and_fail(connection: Any) -> None:
        nonlocal inserted
        commit(connection)
        if inserted:
            inserted = False
            connection.dbapi_connection.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    event.listen(engine, "before_cursor_execute", watch)
    engine.dialect.do_commit = commit_and_fail
    try:
        yield
    finally:
        engine.dialect.do_commit = commit
        event.remove(engine, "before_cursor_execute", watch)


@pytest.mark.parametrize("shared", [False, True])
def test_the_files_of_a_change_that_may_have_been_made_stay(
    postgres: PostgreSQL, tmp_path, make_folder, lineage, shared: bool
):
    url = (tmp_path / "shared").as_uri() if shared else None
    registry = Registry.open(tmp_path / "data", postgres.new_database(), url)
    with acknowledgement_lost(registry, "versions"), pytest.raises(UncertainError, match="may have been made"):
        registry.publish("x", make_folder(), lineage)
    with registry.files(registry.resolve("x@1")) as folder:
        assert (folder / "adapter_model.safetensors").read_text() == "weights"
    assert registry.collect_garbage(dry_run=True) == []
    registry.close()


def test_a_database_that_is_a_standby_for_a_while(postgres: PostgreSQL, tmp_path):
    url = postgres.new_database()
    registry = Registry.open(tmp_path / "data", url)
    with psycopg.connect(url, autocommit=True) as database:
        name = database.execute("select current_database()").fetchone()[0]
        database.execute(f"alter database {name} set default_transaction_read_only = on")
        registry._database._engine.dispose()  # a promoted standby ends its connections
        with pytest.raises(UnavailableError):
            registry.set_setting("a", "1")
        database.execute(f"set default_transaction_read_only = off; alter database {name} reset all")
    # The connection that could not write was not kept.
    registry.set_setting("a", "2")
    assert registry.get_setting("a") == "2"
    registry.close()


def test_who_lost_the_right_to_write_removes_nothing_that_another_stored_again(
    postgres: PostgreSQL, tmp_path, make_folder, monkeypatch: pytest.MonkeyPatch
):
    url, store = postgres.new_database(), f"memory://{tmp_path.name}/again"
    first, second = (Registry.open(tmp_path / name, url, store) for name in ("a", "b"))
    folder, listed = make_folder(), ObjectStore._list

    def add(registry: Registry) -> str:
        return registry.add_dataset(task="chat", format="jsonl", rows=1, bad_rows=0, folder=folder).id

    def stalled(self: ObjectStore, key: str) -> Any:
        found = listed(self, key)
        monkeypatch.setattr(ObjectStore, "_list", listed)
        # As the database does with a writer that stands still for too long.
        with psycopg.connect(url, autocommit=True) as connection:
            writers = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted"
            assert connection.execute(writers).fetchall() == [(True,)]
        assert add(second) == dataset
        return found

    dataset = add(first)
    monkeypatch.setattr(ObjectStore, "_list", stalled)
    first.delete_dataset(dataset)
    assert second.dataset(dataset).id == dataset
    third = Registry.open(tmp_path / "c", url, store)
    with third.files(third.dataset(dataset)) as found:
        assert (found / "adapter_config.json").read_text() == '{"r": 8}'
    for registry in (first, second, third):
        registry.close()
