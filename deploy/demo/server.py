"""A server of the demo's own: started on a free port, stopped at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from graft_client import Client
from graft_client.errors import GraftError


@contextmanager
def running_server(base_model: str, *, engine: str, data_dir: Path, cache_dir: Path) -> Iterator[str]:
    """The URL of a ready server over a new data folder. Its log goes to ``data_dir/server.log``.

    Raises:
        SystemExit: it ended instead of getting ready.
    """
    data_dir.mkdir(parents=True)
    log = data_dir / "server.log"
    command = [str(Path(sys.executable).parent / "graft"), "serve", "--base-model", base_model, "--port", "0"]
    command += ["--engine", engine, "--data-dir", str(data_dir)]
    with log.open("w") as output:
        # A session of its own: Ctrl-C ends the demo first, and the demo ends the server.
        server = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "GRAFT_CACHE_DIR": str(cache_dir)},
        )
        try:
            yield _wait_until_ready(server, data_dir / "server.json", log)
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_until_ready(server: subprocess.Popen[bytes], note: Path, log: Path) -> str:
    shown = ""
    while server.poll() is None:
        message = _last_progress(log)
        if message != shown:
            shown = message
            print(f"  {message}", flush=True)
        if note.exists():
            url = str(json.loads(note.read_text())["url"])
            with Client(url, retries=0) as client, suppress(GraftError):
                client.ready()
                return url
        time.sleep(0.5)
    raise SystemExit(f"the server ended while starting:\n{log.read_text(errors='replace')[-2000:]}")


def _last_progress(log: Path) -> str:
    """What the server's log says last about its starting up."""
    message = ""
    for line in log.read_text(errors="replace").splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if entry.get("logger") == "graft_server.progress":
                message = str(entry["message"])
    return message
