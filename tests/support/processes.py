"""Real processes for end-to-end tests: ``graft serve`` with its children, and the command line against it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from graft_client import Client
from graft_client.errors import GraftError

GRAFT = str(Path(sys.executable).parent / "graft")

ENGINE = "graft_server.engine.process"
WORKER = "graft_server.training.worker"

T = TypeVar("T")


def eventually(look: Callable[[], T], *, within: float = 30.0, what: str = "") -> T:
    """The first truthy result of ``look``, which is asked until then.

    Raises:
        AssertionError: there was none in time.
    """
    until = time.monotonic() + within
    while not (found := look()):
        assert time.monotonic() < until, f"not within {within:g} s: {what or look}"
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Finished:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout as JSON."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The last line on stderr that begins with ``Error:``, without that word."""
        return next(line for line in reversed(self.err.splitlines()) if line.startswith("Error: "))[7:]


def run_graft(
    *arguments: str | Path,
    url: str | None = None,
    stdin: str | None = None,
    code: int | None = 0,
    env: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> Finished:
    """Run ``graft`` to its end, which must be with exit code ``code`` unless that is ``None``."""
    done = subprocess.run(
        [GRAFT, *map(str, arguments)],
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=_environment({**({"GRAFT_URL": url} if url else {}), **(env or {})}),
    )
    result = Finished(done.returncode, done.stdout, done.stderr)
    assert code is None or result.code == code, f"graft {arguments}: {result}"
    assert "Traceback" not in result.err, result.err
    return result


class ServerProcess:
    """A running ``graft serve``."""

    def __init__(self, process: subprocess.Popen[bytes], data_dir: Path, log: Path) -> None:
        self.process = process
        self.data_dir = data_dir
        self._log = log
        self.url = ""

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def client(self, **options: Any) -> Client:
        return Client(self.url, **options)

    def http(self, **options: Any) -> httpx.Client:
        """A plain HTTP client, as somebody without our library would use."""
        return httpx.Client(base_url=self.url, trust_env=False, timeout=120, **options)

    def graft(self, *arguments: str | Path, stdin: str | None = None, code: int | None = 0) -> Finished:
        """Run a command against this server; see ``run_graft``."""
        return run_graft(*arguments, url=self.url, stdin=stdin, code=code)

    def json(self, *arguments: str | Path, stdin: str | None = None) -> Any:
        """The document that a command prints with ``--json``."""
        return self.graft(*arguments, "--json", stdin=stdin).document

    def children(self, module: str) -> list[psutil.Process]:
        """The server's child processes that run a module, without those that have ended."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            try:
                if module in child.cmdline():
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return found

    def child(self, module: str) -> psutil.Process:
        """The one child that runs a module, once it is there."""
        return eventually(lambda: self.children(module), what=f"a child that runs {module}")[0]

    def ready(self) -> bool:
        try:
            with self.client(retries=0, timeout=10) as client:
                client.ready()
        except GraftError:
            return False
        return True

    def wait_until_ready(self, within: float = 120.0) -> None:
        def looked() -> bool:
            assert self.process.poll() is None, f"the server has ended:\n{self.log[-3000:]}"
            return self.ready()

        eventually(looked, within=within, what="ready")

    def kill(self) -> None:
        """``kill -9`` of the server alone; waits until its children have noticed."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive, f"outlived their server: {[child.cmdline() for child in alive]}"

    def stop(self) -> int:
        """SIGTERM, and the exit code. A process that a failed test left stopped goes on first."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def launch(
    base_model: str | Path, data_dir: Path, *options: str | Path, threads: int | None = None, **settings: str
) -> ServerProcess:
    """Start a server on a free port without waiting for it. ``settings`` go in as ``GRAFT_`` variables, ``threads`` is
    how many torch computes with."""
    data_dir.mkdir(parents=True, exist_ok=True)
    # Beside the data folder: that one may be full or read-only.
    log = data_dir.with_name(data_dir.name + ".log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [GRAFT, "serve", "--base-model", base_model, "--port", "0", "--data-dir", data_dir, *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(
                {
                    **{f"GRAFT_{name.upper()}": value for name, value in settings.items()},
                    **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
                }
            ),
        )
    return ServerProcess(process, data_dir, log)


@contextmanager
def running(
    base_model: str | Path, data_dir: Path, *options: str | Path, threads: int | None = None, **settings: str
) -> Iterator[ServerProcess]:
    """A server that is ready, for the body of the ``with``; stopped at its end if it still runs. See ``launch``."""
    server = launch(base_model, data_dir, *options, threads=threads, **settings)
    note = data_dir / "server.json"
    try:

        def listening() -> bool:
            assert server.process.poll() is None, f"the server has ended:\n{server.log[-3000:]}"
            # A server that was killed leaves its note behind.
            return note.exists() and json.loads(note.read_text())["pid"] == server.process.pid

        eventually(listening, within=60, what="listening")
        server.url = json.loads(note.read_text())["url"]
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    # No setting of the person who runs the tests reaches the processes, but the cache of converted models does.
    own = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_") or name == "GRAFT_CACHE"}
    return {**own, "COLUMNS": "200", **extra}
