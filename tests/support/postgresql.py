"""A real PostgreSQL server in a temporary folder, reached over a Unix socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

_NOBODY = "nobody"


class PostgreSQL:
    """A server that can be stopped and started again. Safe settings are off: nothing of a test is worth keeping."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._databases = 0

    def start(self) -> None:
        options = f"-k {self._folder} -h '' -c fsync=off -c max_connections=50"
        _run(["pg_ctl", "-D", self._folder / "data", "-o", options, "-l", self._folder / "log", "-w", "start"])

    def stop(self) -> None:
        _run(["pg_ctl", "-D", self._folder / "data", "-m", "immediate", "-w", "stop"])

    def create(self) -> None:
        _run(["initdb", "-D", self._folder / "data", "-A", "trust", "-U", "graft", "--no-sync", "-E", "UTF8"])

    def new_database(self) -> str:
        """The URL of an empty database."""
        self._databases += 1
        name = f"test{self._databases}"
        with psycopg.connect(host=str(self._folder), user="graft", dbname="postgres", autocommit=True) as connection:
            connection.execute(f"create database {name}")  # type: ignore[call-overload]
        return f"postgresql://graft@/{name}?host={self._folder}"


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A running server; the test is skipped where PostgreSQL is not installed."""
    if shutil.which("pg_ctl", path=_path()) is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    # Not below pytest's folder, which others may not enter; and short, as a socket's path must be.
    folder = Path(tempfile.mkdtemp(prefix="graft-pg-", dir="/tmp"))
    try:
        if os.getuid() == 0:
            shutil.chown(folder, _NOBODY)
        server = PostgreSQL(folder)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _path() -> str:
    debian = sorted(str(path) for path in Path("/usr/lib/postgresql").glob("*/bin"))
    return os.pathsep.join([*reversed(debian), os.environ.get("PATH", "")])


def _run(command: Sequence[Any]) -> None:
    # PostgreSQL refuses to run as root.
    user = {"user": _NOBODY, "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        cwd="/",
        env={**os.environ, "PATH": _path(), "LC_ALL": "C"},
        check=False,
        **user,
    )
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}"
