"""The schema: migrations give what the code expects, also when two processes run them, and never downgrade."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from graft_server.registry import NewerDatabaseError, Registry, migrations
from graft_server.registry.models import Table

only_sqlite = pytest.mark.parametrize("database_url", [None], ids=["sqlite"])


def test_the_migrations_lead_to_the_models(registry):
    with registry._database.read() as session:
        connection = session.connection()
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


_OF_THE_FIRST_RELEASE = """
insert into adapters values ('x', 'translation', '2026-01-02 03:04:05');
insert into artefacts values ('d1', 7, '[]', '2026-01-02 03:04:05');
insert into counters values ('engine', 5), ('version:x', 2);
insert into versions (engine_id, adapter, number, digest, created_at, task, method, rank, base_model,
                      base_fingerprint, options)
values (5, 'x', 2, 'd1', '2026-01-02 03:04:05', 'translation', 'lora', 8, 'smollm2', 'f', '{"r": 8}');
"""


def at_revision(revision: str, database: Path) -> None:
    """Migrate a database, a new one where there is none, to a revision."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with create_engine(f"sqlite:///{database}").begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_a_database_of_the_first_release_is_taken_over(data_dir, make_folder, lineage):
    data_dir.mkdir()
    at_revision("0001", data_dir / "registry.db")
    with sqlite3.connect(data_dir / "registry.db") as connection:
        connection.executescript(_OF_THE_FIRST_RELEASE)
    registry = Registry.open(data_dir)
    old = registry.resolve("x")
    assert (old.ref, old.engine_id, old.digest, old.lineage.options) == ("x@2", 5, "d1", {"r": 8})
    assert not old.pinned
    assert registry.pinned_versions() == []
    new = registry.publish("x", make_folder(), lineage)
    assert (new.ref, new.engine_id) == ("x@3", 6)
    assert registry.pin("x", 2).pinned
    assert [version.ref for version in registry.pinned_versions()] == ["x@2"]
    registry.close()


@only_sqlite
def test_a_newer_database_is_left_alone(registry, data_dir, make_folder, lineage):
    registry.publish("x", make_folder(), lineage)
    registry.close()
    with sqlite3.connect(data_dir / "registry.db") as connection:
        (known,) = connection.execute("select version_num from alembic_version").fetchone()
        connection.execute("update alembic_version set version_num = '9999'")
    with pytest.raises(NewerDatabaseError, match=f"revision 9999.*{known}.*upgrade"):
        Registry.open(data_dir)
    assert len(list((data_dir / "artefacts").glob("*/*"))) == 1


@only_sqlite
def test_it_is_durable_and_readable_while_written(registry, data_dir):
    with registry._database.read() as session:
        pragmas = {
            name: session.connection().exec_driver_sql(f"pragma {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


_OPEN = """
import sys
from pathlib import Path
from graft_server.registry import Registry

print("ready", flush=True)
sys.stdin.readline()
Registry.open(Path(sys.argv[1]), sys.argv[2] or None).close()
print("open", flush=True)
"""


def test_processes_that_create_the_database_at_the_same_time_agree(data_dir, tmp_path, database_url):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # On PostgreSQL each is a server with a data folder of its own, so that nothing but the database holds them apart.
    folders = [data_dir if database_url is None else tmp_path / f"data-{number}" for number in range(3)]
    commands = [[sys.executable, "-c", _OPEN, str(folder), database_url or ""] for folder in folders]
    openers = [subprocess.Popen(command, **pipes) for command in commands]
    for opener in openers:
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        opener.stdin.write("go\n")
        opener.stdin.flush()
    assert [opener.communicate(timeout=60)[0] for opener in openers] == ["open\n"] * 3
    assert [opener.returncode for opener in openers] == [0, 0, 0]
