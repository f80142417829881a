"""``graft bench`` against the little server: what is sent, what is counted, and what is said of it."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from random import Random
from typing import Any

import pytest

from graft_client.bench.arrivals import poisson
from graft_client.bench.load import closed_loop, open_loop
from graft_client.bench.workload import Planned
from unit.client import samples
from unit.client.conftest import Graft
from unit.client.little_server import Answer, Asked, LittleServer, document, problem
from unit.client.streams import EVENTS, completion, frame, openai_error, streaming
from unit.client.test_cli import ANSI, graft_process, on_terminal

PATH = "/v1/completions"
SHORT = ("--prompt-tokens", "3", "--output-tokens", "4")


@pytest.fixture
def serving(server: LittleServer) -> LittleServer:
    server.on("GET", "/v1/models", document({"data": [{"id": "the-base"}, {"id": "other"}]}))
    server.on("POST", PATH, streaming())
    server.on("POST", "/v1/chat/completions", streaming())
    return server


def asked_of(server: LittleServer, path: str = PATH) -> list[Any]:
    return [asked.json() for asked in server.asked if asked.path == path]


def measured(graft: Graft, *args: str) -> dict[str, Any]:
    result = graft("bench", *SHORT, *args, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_requests_are_counted_without_the_warm_up(serving: LittleServer, graft: Graft) -> None:
    found = measured(graft, "--requests", "20", "--concurrency", "4", "--warmup", "3")
    assert (found["sent"], found["answered"], found["failed"], found["interrupted"]) == (20, 20, 0, False)
    assert (found["prompt_tokens"], found["output_tokens"], found["uncounted"]) == (20 * 7, 20 * 4, 0)
    bodies = asked_of(serving)
    assert len(bodies) == 23
    assert all(len(body.pop("prompt").split()) == 3 for body in bodies)
    assert bodies == 23 * [
        {
            "model": "the-base",
            "max_tokens": 4,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
    ]


def test_the_figures_fit_the_run(serving: LittleServer, graft: Graft) -> None:
    begun = time.perf_counter()
    found = measured(graft, "--requests", "30")
    assert 0 < found["seconds"] < time.perf_counter() - begun
    assert found["requests_per_second"] == pytest.approx(30 / found["seconds"])
    assert found["output_tokens_per_second"] == pytest.approx(30 * 4 / found["seconds"])
    assert found["total_tokens_per_second"] == pytest.approx(30 * 11 / found["seconds"])
    assert found["models"]["the-base"]["requests"] == 30


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_times_are_those_of_the_stream(serving: LittleServer, graft: Graft, endpoint: str) -> None:
    """The first of four pieces comes after 120 ms, the others 40 ms apart."""
    for path in (PATH, "/v1/chat/completions"):
        serving.on("POST", path, streaming(first=0.12, between=0.04))
    found = measured(graft, "--requests", "6", "--concurrency", "2", "--endpoint", endpoint)
    assert 120 <= found["ttft_ms"]["p50"] < 220
    assert 40 <= found["tpot_ms"]["p50"] < 80
    assert 38 <= found["itl_ms"]["p50"] < 80
    assert 240 <= found["e2e_ms"]["p50"] < 460


def test_chat_sends_messages(serving: LittleServer, graft: Graft) -> None:
    measured(graft, "--requests", "2", "--endpoint", "chat", "--no-ignore-eos", "--temperature", "0.5")
    body = asked_of(serving, "/v1/chat/completions")[-1]
    (message,) = body["messages"]
    assert (message["role"], len(message["content"].split())) == ("user", 3)
    assert ("ignore_eos" in body, body["temperature"]) == (False, 0.5)


def test_a_closed_loop_has_no_more_clients_than_it_says(serving: LittleServer, graft: Graft) -> None:
    running, most = Counter[str](), []
    lock = threading.Lock()

    def watched(asked: Asked) -> Answer:
        def pieces() -> Iterator[bytes]:
            with lock:
                running["now"] += 1
                most.append(running["now"])
            *begin, end = completion(asked, first=0.02)
            yield from begin
            with lock:  # before the client can know that this answer is over
                running["now"] -= 1
            yield end

        return Answer(200, pieces(), EVENTS)

    serving.on("POST", PATH, watched)
    measured(graft, "--requests", "30", "--concurrency", "5", "--warmup", "0")
    assert max(most) == 5


def test_an_open_loop_sends_whatever_the_server_does(serving: LittleServer, graft: Graft) -> None:
    """Nothing is answered until all have arrived, and the wait counts from the arrivals."""
    count, arrived = 12, threading.Barrier(12)

    def held(asked: Asked) -> Answer:
        arrived.wait(20)
        return Answer(200, completion(asked), EVENTS)

    serving.on("POST", PATH, held)
    found = measured(graft, "--rate", "40", "--requests", str(count), "--warmup", "0")
    assert (found["answered"], found["settings"]["concurrency"]) == (count, None)
    assert found["ttft_ms"]["p99"] > found["ttft_ms"]["p50"] + 30


def test_it_ends_after_the_seconds(serving: LittleServer, graft: Graft) -> None:
    serving.on("POST", PATH, streaming(first=0.05))
    closed = measured(graft, "--seconds", "2", "--concurrency", "2")
    assert 4 <= closed["sent"] <= 82  # two clients, and each answer takes 50 ms at least
    assert closed["answered"] == closed["sent"]
    assert 2 <= closed["seconds"] < 5
    opened = measured(graft, "--seconds", "0.5", "--rate", "60")
    assert opened["sent"] == sum(1 for _ in takewhile(lambda due: due < 0.5, poisson(60, Random("0 arrivals"))))


async def test_requests_come_when_they_are_due() -> None:
    """In an open loop at the arrivals' times, in a closed one when a client is free; failures make it pause."""
    begun = time.perf_counter()
    sent: list[tuple[float, float]] = []

    async def ask(planned: Planned, due: float) -> bool:
        sent.append((due, time.perf_counter() - begun))
        return False

    def clock() -> float:
        return time.perf_counter() - begun

    requests = 6 * [Planned("m", "a", 1, 1)]
    arrivals = [0.05, 0.1, 0.1, 0.2, 0.3, 9.0]
    await open_loop(ask, requests, arrivals=iter(arrivals), seconds=1.0, clock=clock)
    assert [due for due, _ in sent] == arrivals[:5]
    assert all(due - 0.005 <= moment < due + 0.5 for due, moment in sent)
    begun = time.perf_counter()
    sent.clear()
    await closed_loop(ask, requests, concurrency=3, seconds=None, clock=clock)
    assert len(sent) == 6
    assert clock() >= 0.2


REPLIES = {
    "429": openai_error(429, "the queue is full"),
    "503": problem(503, "draining"),
    "400": Answer(400, [b"not JSON"]),
    "stream": Answer(200, [frame({"choices": [{"text": "w"}]}), frame({"error": {"message": "it broke"}})], EVENTS),
    "broken": Answer(200, [frame({"choices": [{"text": "w"}]})], EVENTS, breaks=True),
    "protocol": Answer(200, [frame("{]")], EVENTS),
}
TOLD = {
    "429": "the queue is full",
    "503": "draining",
    "400": "not JSON",
    "stream": "it broke",
    "broken": "",
    "protocol": "not a chunk of OpenAI's: {]",
}


@pytest.mark.parametrize("kind", REPLIES)
def test_failures_are_counted_by_kind(serving: LittleServer, graft: Graft, kind: str) -> None:
    serving.on("POST", PATH, streaming(), REPLIES[kind], REPLIES[kind], streaming())
    found = measured(graft, "--requests", "6", "--concurrency", "2", "--warmup", "1", "--ttft-target", "60000")
    assert (found["answered"], found["failed"], found["rejected"]) == (4, 2, 2 if kind == "429" else 0)
    assert list(found["failures"]) == [kind]
    assert found["failures"][kind]["count"] == 2
    assert TOLD[kind] in found["failures"][kind]["example"]
    assert (found["output_tokens"], found["goodput"]["requests"]) == (16, 4)
    assert found["goodput"]["share"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    "reply",
    [
        document({"choices": [{"text": "whole"}]}),
        Answer(200, [frame(piece) for piece in ('["a"]', '{"choices": [3]}', "[DONE]")], EVENTS),
        Answer(200, [frame({"choices": [], "usage": {"tokens": 3}}), frame("[DONE]")], EVENTS),
    ],
    ids=["no stream", "no chunks", "another usage"],
)
def test_what_is_no_openai_stream_is_a_protocol_failure(serving: LittleServer, graft: Graft, reply: Answer) -> None:
    serving.on("POST", PATH, streaming(), reply)
    result = graft("bench", *SHORT, "--requests", "2", "--warmup", "1", "--json")
    assert list(json.loads(result.stdout)["failures"]) == ["protocol"]
    assert result.exit_code == 1  # nothing was answered


def test_silence_is_a_failure_of_its_own(serving: LittleServer, graft: Graft) -> None:
    serving.on("POST", PATH, streaming(), streaming(first=2.5), streaming())
    found = measured(graft, "--requests", "3", "--concurrency", "1", "--timeout", "1")
    assert {kind: told["count"] for kind, told in found["failures"].items()} == {"timeout": 1}


def test_a_server_that_sends_no_usage_has_its_pieces_counted(serving: LittleServer, graft: Graft) -> None:
    serving.on("POST", PATH, streaming(usage=False))
    found = measured(graft, "--requests", "5")
    assert (found["uncounted"], found["prompt_tokens"], found["output_tokens"]) == (5, 15, 20)
    told = graft("bench", *SHORT, "--requests", "5").stderr
    assert "5 answers named no token numbers" in told


def test_the_table_for_people(serving: LittleServer, graft: Graft) -> None:
    serving.on("POST", PATH, streaming(), openai_error(429, "the queue is full"), streaming())
    result = graft("bench", *SHORT, "--requests", "5", "--tpot-target", "5000")
    assert result.exit_code == 0, result.output
    assert re.search(r"requests +4 answered, 1 failed \(1 of them with 429, too many requests\), in ", result.stdout)
    assert re.search(r"goodput .* 80\.0%", result.stdout)
    assert re.search(r"failures +429: 1, e\.g\. the queue is full", result.stdout)
    table = [line.split() for line in result.stdout.splitlines()]
    assert ["milliseconds", "mean", "p50", "p90", "p95", "p99"] in table
    for name in ("time to first token", "time per output token", "inter-token latency", "end-to-end latency"):
        assert re.search(rf"{name}(  +[\d.,]+){{5}}", result.stdout)


def test_a_terminal_gets_a_bar_with_the_rate(serving: LittleServer) -> None:
    serving.on("POST", PATH, streaming(first=0.1))
    code, shown = on_terminal(serving, "bench", *SHORT, "--requests", "20", "--concurrency", "2")
    assert code == 0
    text = ANSI.sub("", shown)
    assert re.search(r"measuring +[━╺]+ +\d+ done  [\d.]+ requests/s  \d+ tok/s  [\d.]+ s left", text)


def test_the_result_is_written_to_a_file(serving: LittleServer, graft: Graft, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    printed = measured(graft, "--requests", "3", "--api-key", "secret", "-o", str(file))
    assert json.loads(file.read_text()) == printed
    assert "secret" not in file.read_text()
    assert all(asked.headers["Authorization"] == "Bearer secret" for asked in serving.asked)


def test_a_result_that_can_not_be_written_is_shown(serving: LittleServer, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text("of an earlier run")
    process = graft_process(
        serving,
        *("bench", *SHORT, "--requests", "2", "-o", str(file), "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
    )
    shown, told = process.communicate(timeout=30)
    assert (process.returncode, json.loads(shown)["answered"]) == (1, 2)
    assert json.loads(told)["error"]["detail"] == f"{file}: File too large"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("result.json", "of an earlier run")]


def test_a_result_can_be_written_to_a_device(serving: LittleServer, graft: Graft) -> None:
    assert graft("bench", *SHORT, "--requests", "1", "-o", os.devnull).exit_code == 0
    assert not Path(os.devnull).is_file()


def test_ctrl_c_shows_what_was_measured(serving: LittleServer, tmp_path: Path) -> None:
    """The first five of the run are answered, the others never."""
    process: subprocess.Popen[bytes]
    asked_before = threading.Semaphore(6)  # with one of the warm-up

    def some(asked: Asked) -> Answer:
        def pieces() -> Iterator[bytes]:
            if not asked_before.acquire(blocking=False):
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)
                process.wait(timeout=30)
            yield from completion(asked)

        return Answer(200, pieces(), EVENTS)

    serving.on("POST", PATH, some)
    file = tmp_path / "result.json"
    arguments = ["bench", *SHORT, "--requests", "50", "--concurrency", "1", "-o", str(file)]
    process = graft_process(serving, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    shown, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"5 answered" in shown
    assert b"interrupted; what was in flight is left out (1)" in told
    found = json.loads(file.read_text())
    assert (found["interrupted"], found["sent"], found["answered"], found["failed"]) == (True, 6, 5, 0)


def test_models_are_asked_by_their_popularity(serving: LittleServer, graft: Graft) -> None:
    models = ["--model", "one", "--model", "two", "--model", "three"]
    found = measured(graft, *models, "--requests", "90", "--popularity", "zipf", "--zipf-exponent", "3")
    asked = Counter(body["model"] for body in asked_of(serving)[3:])
    assert {name: figures["requests"] for name, figures in found["models"].items()} == dict(asked)
    assert asked["one"] > 2 * asked["two"] > 0
    assert [body["model"] for body in asked_of(serving)[:3]] != 3 * ["one"]  # the warm-up has each of them
    assert serving.paths()[0] == f"POST {PATH}"  # whoever names models needs no /v1/models


def test_a_url_may_end_as_openais_sdks_have_it(serving: LittleServer, graft: Graft) -> None:
    found = measured(graft, "--requests", "1", "--url", f"{serving.url}/v1")
    assert found["settings"]["url"] == serving.url


def test_adapters_are_those_of_the_server(serving: LittleServer, graft: Graft) -> None:
    serving.on("GET", "/api/adapters", document([samples.ADAPTER]))
    serving.on("GET", "/api/adapters/de-strings", document(samples.ADAPTER))
    assert list(measured(graft, "--requests", "1", "--adapters", "1")["models"]) == ["de-strings"]
    both = ["--adapter", "de-strings@2", "--adapter", "base"]
    assert list(measured(graft, "--requests", "1", *both)["models"]) == ["de-strings@2", "base"]
    few = graft("bench", "--adapters", "2")
    assert (few.exit_code, "the server has 1 adapters, not 2" in few.stderr) == (2, True)
    assert graft("bench", "--adapter", "nobody").exit_code == 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rate", "1", "--concurrency", "1"], "not both"),
        (["--adapters", "1", "--model", "x"], "only one of"),
        (["--prompt-tokens", "9-3"], "`9-3` must be at least 1 and run upwards"),
        (["--plot", "curve.bmp"], "curve.bmp: a plot's name ends in .png, .svg or .pdf"),
        (["--plot", "nowhere/curve.png"], "nowhere: no such folder"),
        (["-o", "nowhere/result.json"], "nowhere: no such folder"),
        (["--model", "caf\udce9"], "Invalid value for '--model': not UTF-8"),
    ],
)
def test_mistakes_are_told_before_anything_is_asked(
    serving: LittleServer, graft: Graft, arguments: list[str], told: str
) -> None:
    result = graft("bench", *arguments)
    assert (result.exit_code, serving.asked) == (2, [])
    assert told in result.stderr


def test_a_server_that_refuses_the_warm_up_ends_it(serving: LittleServer, graft: Graft) -> None:
    serving.on("POST", PATH, openai_error(404, "no model x"))
    result = graft("bench", "--model", "x", "--warmup", "2")
    assert (result.exit_code, len(serving.asked)) == (1, 2)
    assert "answered no request of the warm-up: 404: no model x" in result.stderr


def test_no_server_is_3(serving: LittleServer, graft: Graft) -> None:
    for arguments in ([], ["--model", "x"]):
        assert graft("bench", *arguments, "--url", "http://127.0.0.1:1").exit_code == 3


def test_a_server_without_models_wants_one_named(server: LittleServer, graft: Graft) -> None:
    result = graft("bench")
    assert result.exit_code == 1
    assert "give one with --model" in result.stderr


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_plot_is_drawn(serving: LittleServer, graft: Graft, tmp_path: Path, suffix: str, begins: bytes) -> None:
    file = tmp_path / f"curves.{suffix}"
    serving.on("POST", PATH, streaming(first=0.01, between=0.002))
    measured(graft, "--requests", "12", "--ttft-target", "20", "--plot", str(file))
    assert file.read_bytes().startswith(begins)
    if suffix == "svg":  # text is drawn as paths, with the words in comments
        text = file.read_text()
        for words in ("Time to first token", "Time per output token", "Throughput over time", "target 20 ms"):
            assert f"<!-- {words} -->" in text


def test_a_run_that_answered_nothing_can_be_drawn(serving: LittleServer, graft: Graft, tmp_path: Path) -> None:
    serving.on("POST", PATH, openai_error(429, "full"))
    file = tmp_path / "curves.svg"
    assert graft("bench", "--requests", "2", "--warmup", "0", "--plot", str(file)).exit_code == 1
    assert "<!-- nothing measured -->" in file.read_text()


def test_a_plot_without_matplotlib_says_what_to_install(
    serving: LittleServer, graft: Graft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = graft("bench", "--plot", str(tmp_path / "curves.png"))
    assert (result.exit_code, serving.asked) == (1, [])
    assert "pip install 'graftwork[bench]'" in result.stderr
