"""``graft status --watch``: on a terminal, in a pipe and as JSON, with servers that go away and come back."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from graft_client.cli.dashboard import Dashboard, sparkline
from graft_client.cli.watch import line
from graft_client.schemas.status import AdapterTraffic, PinnedVersion, ServerStatus
from unit.client import samples
from unit.client.conftest import Graft
from unit.client.little_server import Answer, LittleServer, document, problem, running

ROWS = [
    AdapterTraffic(ref="de-strings@3", loaded=True, running=2, waiting=1, tokens_per_second=80.5),
    AdapterTraffic(ref="base", loaded=True, running=1, tokens_per_second=20.0),
    AdapterTraffic(ref="films@1", loaded=False, waiting=4),
    AdapterTraffic(ref="quiet@2", loaded=True),
]


def busy(**changes: Any) -> ServerStatus:
    engine = samples.STATUS.engine.model_copy(
        update={
            "tokens_per_second": 100.5,
            "generated_tokens": 12_345,
            "kv_blocks_used": 30,
            "kv_blocks_total": 120,
            "loaded_adapters": ["de-strings@3", "quiet@2"],
            "reused_tokens": 640,
        }
    )
    fields = {
        "engine": engine,
        "traffic": ROWS,
        "admitted_requests": 3,
        "queued_requests": 5,
        "queue_age_seconds": 12.0,
        **changes,
    }
    return samples.STATUS.model_copy(update=fields)


def drawn(dashboard: Dashboard, width: int = 90, height: int = 30) -> list[str]:
    console = Console(width=width, height=height, force_terminal=True, color_system=None, record=True)
    with console.capture() as capture:
        console.print(dashboard)
    return [row.rstrip() for row in capture.get().splitlines()]


def dashboard_of(status: ServerStatus) -> Dashboard:
    dashboard = Dashboard("http://gpu-1:8000")
    dashboard.update(status)
    return dashboard


# What is drawn


def test_the_screen_has_the_figures_and_the_busiest_adapters_first() -> None:
    rows = drawn(dashboard_of(busy()))
    text = "\n".join(rows)
    for part in ("smollm2", "torch on cpu bfloat16", "ready", "up 1:15", "http://gpu-1:8000 (graftwork 0.1.0)"):
        assert part in rows[0]
    assert "100 tok/s, 12,345 tokens so far" in text
    assert re.search(r"waiting +5, the oldest for 12 s", text)
    assert re.search(r"KV cache +━+─+  30 of 120 blocks", text)
    assert "2 of 32 in use" in text
    assert "640 prompt tokens reused" in text
    table = [row.split() for row in rows[rows.index("") :] if "@" in row or row.startswith("base")]
    assert table == [
        ["de-strings@3", "2", "1", "80.5"],
        ["base", "1", "0", "20.0"],
        ["films@1", "0", "4", "0.0"],
        ["quiet@2", "0", "0", "0.0"],
    ]


def test_pins_are_counted_and_those_that_are_not_loaded_are_told() -> None:
    error = "b@2: adapter_config.json is missing"
    pins = [PinnedVersion(ref="a@1", loaded=True), PinnedVersion(ref="b@2", loaded=False, error=error)]
    text = "\n".join(drawn(dashboard_of(busy(pinned=pins))))
    assert "2 of 32 in use, 2 pinned" in text
    assert f"not loaded: {error}" in text
    assert "pinned" not in "\n".join(drawn(dashboard_of(busy())))


@pytest.mark.parametrize("width", [24, 40, 60, 200])
@pytest.mark.parametrize("height", [8, 18, 40])
def test_the_screen_fits_any_terminal(width: int, height: int) -> None:
    long = [ROWS[0].model_copy(update={"ref": f"{'long-' * 12}{n}@1"}) for n in range(50)]
    rows = drawn(dashboard_of(busy(traffic=long)), width, height)
    assert max(map(len, rows)) <= width
    if height >= 18 and width >= 40:
        assert len(rows) <= height
        shown = sum("80.5" in row for row in rows)
        assert shown >= 1
        assert rows[-1] == f"and {50 - shown} more"


def test_a_server_that_is_lost_is_told_and_its_last_figures_stay() -> None:
    dashboard = Dashboard("http://gpu-1:8000")
    dashboard.lost("can't reach http://gpu-1:8000, retrying")
    assert drawn(dashboard) == ["can't reach http://gpu-1:8000, retrying (0.0 s)"]
    dashboard.update(busy())
    dashboard.lost("can't reach http://gpu-1:8000, retrying")
    rows = drawn(dashboard)
    assert rows[0].startswith("can't reach")
    assert any("12,345 tokens" in row for row in rows)
    dashboard.update(busy())
    assert drawn(dashboard)[0].startswith("smollm2")


def test_an_engine_that_keeps_silent_is_told() -> None:
    engine = samples.STATUS.engine.model_copy(update={"stats_age_seconds": 7.0})
    assert "the engine is silent for 7.0 s" in drawn(dashboard_of(busy(engine=engine)))[0]
    assert "silent" not in "\n".join(drawn(dashboard_of(busy())))


def test_text_of_the_server_commands_no_terminal() -> None:
    bad = AdapterTraffic(ref="x\x1b[2J[bold]", loaded=True, running=1)
    status = busy(traffic=[bad], base_model=samples.STATUS.base_model.model_copy(update={"name": "m\x1b[2J[red]"}))
    text = "\n".join(drawn(dashboard_of(status)))
    assert "m[2J[red]" in text
    assert "x[2J[bold]" in text
    assert "\x1b[2J" not in line(status)


def test_a_sparkline_shows_the_newest_last_and_gaps() -> None:
    assert sparkline([0.0, 5.0, None, 10.0], 10) == "▁▅ █"
    assert sparkline([0.0, 0.0], 10) == "▁▁"
    assert sparkline([], 10) == ""
    assert sparkline([1.0, 1.0, 8.0, 8.0], 2) == "▂█"


@given(st.lists(st.none() | st.floats(0, 1e9), max_size=200), st.integers(1, 80))
def test_a_sparkline_never_is_too_wide(values: list[float | None], width: int) -> None:
    assert len(sparkline(values, width)) <= width


def test_a_line_names_the_adapters_that_do_something() -> None:
    assert line(busy()) == (
        "ready  100 tok/s  3 running  5 waiting  KV 30/120  slots 2/32"
        "  de-strings@3 2+1 80 tok/s  base 1+0 20 tok/s  films@1 0+4 0 tok/s"
    )
    many = [ROWS[0]] * 6
    assert line(busy(ready=False, traffic=many)).endswith("  2 more")


# The command


@contextmanager
def watching(url: str, *args: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """``graft status --watch`` in a process of its own, killed at the end if a test left it running."""
    program = [sys.executable, "-c", "from graft_client.cli import main; main()", "status", "--watch"]
    process = subprocess.Popen(
        [*program, "--interval", "0.1", *args],
        env={**os.environ, "GRAFT_URL": url, "TERM": "xterm-256color"},
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_in_a_pipe_it_prints_a_line_each_time_until_ctrl_c(server: LittleServer) -> None:
    server.on("GET", "/api/status", document(busy()))
    with watching(server.url, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().decode() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0
    assert told == b""
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d  ready  100 tok/s .* films@1 0\+4 0 tok/s\n", text) for text in lines)


def test_as_json_it_prints_the_servers_document_a_line(server: LittleServer) -> None:
    server.on("GET", "/api/status", document(busy()), document(busy(queued_requests=6)))
    with watching(server.url, "--json", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        documents = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    assert documents == [busy().model_dump(mode="json"), busy(queued_requests=6).model_dump(mode="json")]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_server_that_goes_away_is_asked_until_it_is_back(as_json: bool) -> None:
    first, again = LittleServer(), LittleServer()
    closing = document(busy())
    # A connection that is kept would be served on after the server has gone.
    closing.headers["Connection"] = "close"
    first.on("GET", "/api/status", closing)
    again.on("GET", "/api/status", problem(503, "the server is shutting down"), document(busy(queued_requests=77)))
    options = ["--json"] if as_json else []
    with ExitStack() as stack:
        with running(first):
            url = first.url
            process = stack.enter_context(watching(url, *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
        told = process.stderr.readline().decode()
        with running(again, int(url.rpartition(":")[2])):
            while "77" not in process.stdout.readline().decode():
                pass
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=30)
    assert process.returncode == 0
    if as_json:
        assert json.loads(told)["error"]["exit_code"] == 3
    else:
        assert f"can't reach {url}, retrying" in told
    assert "the server is shutting down" in rest.decode()


class Terminal:
    """A terminal with a process on it, and what it shows."""

    def __init__(self, columns: int = 70, rows: int = 25) -> None:
        self.main, self.end = pty.openpty()
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.seen = ""

    def until(self, condition: Callable[[str], object]) -> None:
        while not condition(self.seen):
            self.seen += os.read(self.main, 4096).decode(errors="replace")


def test_on_a_terminal_it_is_a_screen_that_is_left_as_it_was(server: LittleServer) -> None:
    server.on("GET", "/api/status", document(busy()), document(busy(queued_requests=77)))
    terminal = Terminal()
    with watching(server.url, stdin=terminal.end, stdout=terminal.end, stderr=terminal.end) as process:
        terminal.until(lambda seen: "de-strings@3" in seen and "77, the oldest" in seen)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        terminal.until(lambda seen: "\x1b[?1049l" in seen)
    assert terminal.seen.startswith("\x1b[?1049h")
    assert "Traceback" not in terminal.seen


def test_a_url_that_is_no_graftwork_server_ends_it(server: LittleServer, graft: Graft) -> None:
    server.on("GET", "/api/status", Answer(200, [b"<html>"]))
    assert graft("status", "--watch").exit_code == 1
    assert graft("status", "--watch", "--url", "localhost").exit_code == 2
    assert graft("status", "--watch", "--interval", "0").exit_code == 2
