"""Connections, transactions and migrations of the registry's database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, OperationalError
from sqlalchemy.orm import ORMExecuteState, Session, sessionmaker

from graft_server.registry.errors import (
    InvalidDatabaseError,
    NewerDatabaseError,
    StorageFullError,
    UnavailableError,
    UncertainError,
    UnstorableError,
)
from graft_server.registry.models import Counter, now
from graft_server.registry.visibility import EVERYTHING, restrictions

_BUSY_TIMEOUT_MS = 30_000
_CONNECT_SECONDS = 5
#: Milliseconds after which a writer that does nothing loses its transaction: a server that is stopped, or was cut off,
#: must not keep all others from writing. Less than those wait, and than a claim on a job holds unless set otherwise;
#: more than an artefact store that is well takes where a change waits for it.
IDLE_WRITER_MS = 15_000
#: A network that is gone is noticed within seconds; without these only after a quarter of an hour.
_NETWORK = {"tcp_user_timeout": 10_000, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
#: Any number that no other program on the same PostgreSQL database uses.
WRITERS_LOCK = 0x67726166  # "graf"
_WRITES = "graft_writes"
#: PostgreSQL's ``read_only_sql_transaction``: of a standby, or of a primary that has become one.
_READ_ONLY = "25006"


class Database:
    """One database, by SQLAlchemy URL. Threads may share it; processes each open their own."""

    def __init__(self, url: str) -> None:
        self._engine = _engine_of(url)
        if self._engine.dialect.name == "sqlite":
            _configure_sqlite(self._engine)
        else:
            _configure_postgresql(self._engine)
        self._writing_engine = self._engine.execution_options(**{_WRITES: True})
        self._sessions = sessionmaker()
        event.listen(self._sessions, "do_orm_execute", _show_what_may_be_seen)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent view of the database."""
        with self._reported_errors(), self._sessions(bind=self._engine) as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction, committed when the block ends and undone when it raises.

        Raises:
            StorageFullError: the disk is full; nothing was changed.
            UncertainError: the database went away at the very end.
        """
        committing = False
        try:
            with self._reported_errors(), self._sessions(bind=self._writing_engine) as session, session.begin():
                yield session
                session.flush()
                committing = True
        except UnavailableError as error:
            if committing:
                raise UncertainError(self.name) from error
            raise

    @property
    def name(self) -> str:
        """The database for a message, without its password."""
        return self._engine.url.render_as_string(hide_password=True)

    @property
    def is_shared(self) -> bool:
        """Whether servers on several machines may use it."""
        return self._engine.dialect.name != "sqlite"

    def is_new(self) -> bool:
        """Whether no migration has run yet."""
        with self._reported_errors(), self._engine.connect() as connection:
            return not MigrationContext.configure(connection).get_current_heads()

    def migrate(self) -> None:
        """Bring the schema to this release's newest revision, in one transaction.

        Raises:
            NewerDatabaseError: the database has a revision that this release does not know.
        """
        config = Config()
        # A configuration file's interpolation would read a percent sign in the path.
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
        scripts = ScriptDirectory.from_config(config)
        known = {script.revision for script in scripts.walk_revisions()}
        with self._reported_errors(), self._writing_engine.begin() as connection:
            found = MigrationContext.configure(connection).get_current_heads()
            for revision in found:
                if revision not in known:
                    raise NewerDatabaseError(revision, str(scripts.get_current_head()))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def _reported_errors(self) -> Iterator[None]:
        try:
            yield
        except (DataError, OverflowError) as error:
            # A NUL in a text, which PostgreSQL has no place for, or a number beyond 64 bits.
            raise UnstorableError from error
        except DBAPIError as error:
            if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise StorageFullError(self.name) from error
            ended = isinstance(error, OperationalError) or error.connection_invalidated
            if getattr(error.orig, "sqlstate", None) == _READ_ONLY:
                # Another one has its place, or will have: connections to this one are of no use any more.
                self._engine.dispose()
                ended = True
            if ended and self._engine.dialect.name == "postgresql":
                raise UnavailableError(self.name) from error
            raise


def _show_what_may_be_seen(state: ORMExecuteState) -> None:
    """For every query, wherever it is written: rows that the caller may not see are not there."""
    if state.is_select and not state.is_column_load and not state.execution_options.get(EVERYTHING):
        state.statement = state.statement.options(*restrictions())


def next_number(session: Session, name: str) -> int:
    """The next number of a counter, from 1. Numbers of a transaction that is undone may come again."""
    counter = session.get(Counter, name, with_for_update=True)
    if counter is None:
        counter = Counter(name=name, last=0)
        session.add(counter)
    counter.last += 1
    return counter.last


def moment(session: Session) -> datetime:
    """The present by the database's clock: servers whose own clocks differ agree about it."""
    if session.get_bind().dialect.name == "postgresql":
        # ``now()`` would be when the transaction began, and it may have waited for its turn.
        return cast("datetime", session.scalar(select(func.clock_timestamp())))
    return now()


def _engine_of(url: str) -> Engine:
    """Raises:
    InvalidDatabaseError: the URL is none, or of a database that is not supported.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        # The URL may hold a password.
        raise InvalidDatabaseError("it is no URL; write it like postgresql://user:password@host/name") from None
    if parsed.drivername == "sqlite":
        return create_engine(parsed)
    if parsed.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise InvalidDatabaseError(f"{parsed.drivername} is not supported; use PostgreSQL, or nothing for SQLite")
    return create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        # A server that was started anew has ended its connections: that costs a question, not a request.
        pool_pre_ping=True,
        connect_args={"connect_timeout": _CONNECT_SECONDS, **_NETWORK},
    )


def _configure_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        if connection.get_execution_options().get(_WRITES, False):
            # One writer at a time, as with SQLite, so that what a transaction has looked at still holds when it writes.
            # Migrations take the same lock.
            connection.exec_driver_sql(
                f"SET LOCAL lock_timeout = {_BUSY_TIMEOUT_MS}; "
                f"SET LOCAL idle_in_transaction_session_timeout = {IDLE_WRITER_MS}"
            )
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})")
        else:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


def _configure_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _: Any) -> None:
        # The driver must not begin transactions by itself: whether one takes the write lock at once is decided
        # below. A reader that turns writer halfway would fail instead of waiting.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {_BUSY_TIMEOUT_MS}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            # A registry of 10,000 adapters stays in memory: 16 MiB of pages, where SQLite's own limit is 2.
            "cache_size = -16384",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
