"""The library against a real socket: documents, errors, retries, streams. Both clients where they could differ."""

from __future__ import annotations

import asyncio
import inspect
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from graft_client import AsyncClient, Client, calls
from graft_client._call import Lines
from graft_client.errors import (
    AccessError,
    AnswerTimeoutError,
    BusyError,
    ConnectError,
    GraftError,
    InvalidError,
    NotFoundError,
    ProtocolError,
    ServerError,
    UsageError,
)
from graft_client.schemas.common import Problem
from graft_client.schemas.jobs import JobState
from graft_client.schemas.predict import BulkLine, EvaluationEvent, PredictEvent, SamplingOverrides
from unit.client import samples
from unit.client.little_server import Answer, Asked, LittleServer, document, ndjson, problem, running, sse

Ask = Callable[..., Any]


def _ask_blocking(url: str, method: str, *args: Any, timeout: float = 10.0, **kwargs: Any) -> Any:
    with Client(url, timeout=timeout) as client:
        found = getattr(client, method)(*args, **kwargs)
        return list(found) if inspect.isgenerator(found) else found


def _ask_async(url: str, method: str, *args: Any, timeout: float = 10.0, **kwargs: Any) -> Any:
    async def ask() -> Any:
        async with AsyncClient(url, timeout=timeout) as client:
            found = getattr(client, method)(*args, **kwargs)
            return [item async for item in found] if inspect.isasyncgen(found) else await found

    return asyncio.run(ask())


@pytest.fixture(params=[_ask_blocking, _ask_async], ids=["Client", "AsyncClient"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Calls a method of one client and reads its stream to the end."""
    chosen: Ask = request.param
    return chosen


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_documents_arrive_typed(server: LittleServer, ask: Ask) -> None:
    server.on("GET", "/api/status", document(samples.STATUS))
    server.on("GET", "/api/jobs", document([samples.job()]))
    assert ask(server.url, "status") == samples.STATUS
    assert ask(server.url, "jobs", state=JobState.succeeded, limit=5) == [samples.job()]
    assert server.asked[-1].query == {"state": ["succeeded"], "limit": ["5"]}


def test_a_prediction_sends_what_was_given_and_no_more(server: LittleServer, ask: Ask) -> None:
    server.on("POST", "/api/predict", document(samples.answer()))
    ask(server.url, "predict", "de-strings", "Hello", sampling=SamplingOverrides(max_tokens=5))
    assert server.asked[-1].json() == {"adapter": "de-strings", "text": "Hello", "sampling": {"max_tokens": 5}}
    ask(server.url, "predict", None, {"source": "Hello"}, task="translation")
    assert server.asked[-1].json() == {"task": "translation", "input": {"source": "Hello"}}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotFoundError), (409, InvalidError), (413, InvalidError), (422, InvalidError), (500, ServerError)],
)
def test_a_problem_becomes_its_error(server: LittleServer, ask: Ask, status: int, kind: type[ServerError]) -> None:
    answer = problem(status, "the sentence", nearest="de-strings", errors=[{"place": "a:1", "message": "m"}])
    server.on("GET", "/api/adapters/x", answer)
    with pytest.raises(kind, match=r"^the sentence$") as caught:
        ask(server.url, "adapter", "x")
    assert type(caught.value) is kind
    assert caught.value.problem.nearest == "de-strings"
    assert caught.value.errors[0].place == "a:1"
    assert len(server.asked) == 1


def test_an_error_that_is_no_problem_document_still_says_what_happened(server: LittleServer, ask: Ask) -> None:
    server.on("GET", "/api/status", Answer(500, [b"<html>oops</html>"]))
    with pytest.raises(ServerError, match=r"GET http://.*/api/status answered 500 Internal Server Error"):
        ask(server.url, "status")


@pytest.mark.parametrize("body", [b"<html>hello</html>", b'{"version": 1}', b"", b"\xff\xfe"])
def test_an_answer_from_something_else_is_told_apart(server: LittleServer, ask: Ask, body: bytes) -> None:
    server.on("GET", "/api/status", Answer(200, [body]))
    with pytest.raises(ProtocolError, match="is it a graftwork server"):
        ask(server.url, "status")


def test_a_stream_from_something_else_is_told_apart(server: LittleServer, ask: Ask) -> None:
    server.on("POST", "/api/predict", Answer(200, [b"hello"], {"Content-Type": "text/html"}))
    with pytest.raises(ProtocolError, match="is no graftwork server"):
        ask(server.url, "predict_stream", "x", "Hello")


def test_a_redirect_is_not_followed_in_silence(server: LittleServer, ask: Ask) -> None:
    server.on("GET", "/api/status", Answer(307, [], {"Location": "https://elsewhere.example/"}))
    with pytest.raises(ProtocolError, match=r"redirects to https://elsewhere\.example/"):
        ask(server.url, "status")


def test_nobody_there_says_what_to_do(ask: Ask) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConnectError, match=f"no server answers at {url} .*`graft serve .*--url"):
        ask(url, "status")


def test_a_server_that_has_just_come_up_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    server = LittleServer()
    server.on("POST", "/api/jobs", document(samples.job(), 201))
    with ExitStack() as stack, Client(f"http://127.0.0.1:{(port := free_port())}") as client:
        # The server comes up while the client waits; a job is safe to send again because it never arrived.
        monkeypatch.setattr("graft_client.sync.time.sleep", lambda _: stack.enter_context(running(server, port)))
        assert client.create_job(task="t", dataset="d", adapter="x").id == "job-1"
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(server: LittleServer, ask: Ask, status: int) -> None:
    wait = problem(status, "full", headers={"Retry-After": "0"})
    server.on("POST", "/api/predict", wait, wait, document(samples.answer()))
    assert ask(server.url, "predict", "x", "Hello").text == "Hallo"
    assert len(server.asked) == 3


def test_retry_after_is_waited_for(server: LittleServer, ask: Ask) -> None:
    wait = problem(503, "not ready", headers={"Retry-After": "1"})
    server.on("GET", "/health/ready", wait, document({"status": "ok"}))
    begun = time.monotonic()
    ask(server.url, "ready")
    assert time.monotonic() - begun >= 1.0


def test_it_gives_up_with_the_servers_reason(server: LittleServer, ask: Ask) -> None:
    server.on("GET", "/health/ready", problem(503, "the engine is starting", headers={"Retry-After": "0"}))
    with pytest.raises(BusyError, match=r"^the engine is starting$"):
        ask(server.url, "ready")
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("health", "told"),
    [
        ({"status": "starting", "detail": None}, "the server is not ready: its engine is starting"),
        ({"status": "failed", "detail": "no memory left"}, "the server is not ready: no memory left"),
    ],
)
def test_a_server_that_is_not_ready_says_why(
    server: LittleServer, ask: Ask, health: dict[str, str | None], told: str
) -> None:
    refusal = document(health, 503)
    refusal.headers["Retry-After"] = "0"
    server.on("GET", "/health/ready", refusal)
    with pytest.raises(BusyError, match=f"^{told}$") as caught:
        ask(server.url, "ready")
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (503, "not-ready", 0)


def test_pins_are_set_and_taken_off_also_when_the_server_is_busy_at_first(server: LittleServer, ask: Ask) -> None:
    path = "/api/adapters/de-strings/versions/3/pin"
    wait = problem(503, "the engine is starting", headers={"Retry-After": "0"})
    server.on("POST", path, wait, document(samples.version(pinned=True)))
    server.on("DELETE", path, document(samples.version()))
    assert ask(server.url, "pin_version", "de-strings", 3).pinned
    assert not ask(server.url, "unpin_version", "de-strings", 3).pinned
    assert server.paths() == [f"POST {path}"] * 2 + [f"DELETE {path}"]
    server.on("POST", path, problem(409, "all slots but one are pinned"))
    with pytest.raises(InvalidError, match="all slots but one"):
        ask(server.url, "pin_version", "de-strings", 3)


def test_what_changes_something_is_sent_once(server: LittleServer, ask: Ask) -> None:
    wait = problem(503, "draining", headers={"Retry-After": "0"})
    server.on("POST", "/api/jobs", wait)
    server.on("DELETE", "/api/adapters/x", wait)
    with pytest.raises(BusyError):
        ask(server.url, "create_job", task="t", dataset="d", adapter="x")
    with pytest.raises(BusyError):
        ask(server.url, "delete_adapter", "x")
    assert server.paths() == ["POST /api/jobs", "DELETE /api/adapters/x"]


def test_a_silent_server_is_not_asked_twice(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(AnswerTimeoutError, match="sent nothing for too long"):
            ask(url, "status", timeout=0.2)


def test_deltas_then_the_result(server: LittleServer, ask: Ask) -> None:
    final = samples.answer("Hal\u2028lo")
    stream = sse(samples.delta("Hal"), samples.delta("\u2028lo\n\n"), samples.result(final))
    server.on("POST", "/api/predict", stream)
    events = ask(server.url, "predict_stream", "de-strings", "Hello")
    assert [event.delta for event in events] == ["Hal", "\u2028lo\n\n", None]
    assert events[-1].result == final
    assert server.asked[0].json()["stream"] is True


def test_an_error_within_a_stream_is_raised_after_what_came_before(server: LittleServer) -> None:
    fault = PredictEvent(event="error", problem=Problem(title="t", status=503, detail="the engine died", code="engine"))
    server.on("POST", "/api/predict", sse(samples.delta("Hal"), ("error", None, fault)))
    with Client(server.url) as client:
        events = client.predict_stream("x", "Hello")
        assert next(events).delta == "Hal"
        with pytest.raises(BusyError, match="the engine died"):
            next(events)
    assert len(server.asked) == 1


def test_a_stream_that_breaks_after_its_first_piece_is_not_begun_again(server: LittleServer, ask: Ask) -> None:
    server.on("POST", "/api/predict", sse(samples.delta("Hal"), breaks=True))
    with pytest.raises(ConnectError, match=r"the connection to .* broke"):
        ask(server.url, "predict_stream", "x", "Hello")
    assert len(server.asked) == 1


def test_a_stream_that_could_not_begin_is_asked_for_again(server: LittleServer, ask: Ask) -> None:
    wait = problem(429, "full", headers={"Retry-After": "0"})
    server.on("POST", "/api/predict", wait, sse(samples.delta("Hal"), samples.result(samples.answer())))
    assert len(ask(server.url, "predict_stream", "x", "Hello")) == 2


def test_job_events_go_on_where_the_connection_broke(server: LittleServer, ask: Ask) -> None:
    server.on(
        "GET",
        "/api/jobs/job-1/events",
        sse(samples.event(1), samples.event(2), breaks=True),
        sse(samples.event(3), breaks=True),
        sse(samples.event(4, "state", state="succeeded")),
    )
    events = ask(server.url, "job_events", "job-1")
    assert [event.seq for event in events] == [1, 2, 3, 4]
    assert [asked.query["after"] for asked in server.asked] == [["0"], ["2"], ["3"]]
    assert [asked.headers["last-event-id"] for asked in server.asked] == [None, "2", "3"]


def test_bulk_lines_may_hold_any_character(server: LittleServer, ask: Ask) -> None:
    texts = ["a\u2028b", "c\x85d", "e\nf", "g\rh", "\x1c"]
    lines = [BulkLine(index=i, result=samples.answer(text)) for i, text in enumerate(texts)]
    whole = b"".join(line.model_dump_json().encode() + b"\n" for line in lines)
    server.on("POST", "/api/predict/bulk", Answer(200, [whole[i : i + 7] for i in range(0, len(whole), 7)]))
    found = ask(server.url, "predict_bulk", [calls.prediction("x", text) for text in texts])
    assert [line.result.text for line in found] == texts


def test_a_last_line_without_a_line_break_counts() -> None:
    lines = Lines()
    assert lines.feed(b'{"a": 1}\n\n{"b"') == ['{"a": 1}']
    assert lines.feed(b": 2}") == []
    assert lines.flush() == ['{"b": 2}']
    assert lines.flush() == []


def test_an_evaluation_raises_its_problem(server: LittleServer, ask: Ask) -> None:
    fault = EvaluationEvent(problem=Problem(title="t", status=422, detail="no rows left", code="c"))
    server.on("POST", "/api/evaluations", ndjson(EvaluationEvent(done=1, total=2), fault))
    with pytest.raises(InvalidError, match="no rows left"):
        ask(server.url, "evaluate", "x", dataset="ds-1")


def test_files_are_uploaded_whole_also_the_second_time(server: LittleServer, ask: Ask, tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl").write_bytes(b"b")
    (tmp_path / ".hidden").write_bytes(b"h")
    wait = problem(503, "not ready", headers={"Retry-After": "0"})
    server.on("POST", "/api/datasets", wait, document(samples.DATASET, 201))
    counted: list[int] = []
    ask(server.url, "upload_dataset", tmp_path, task="translation", skip_bad=True, progress=counted.append)
    for asked in server.asked:
        fields, files = asked.form()
        assert fields == {"task": "translation", "skip_bad": "true"}
        assert files == {"a.jsonl": content, "b.jsonl": b"b"}
    assert sum(counted) == 2 * (len(content) + 1)


def test_an_upload_that_cannot_be_right_is_not_sent(server: LittleServer, ask: Ask, tmp_path: Path) -> None:
    for folder in ("x", "y", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "x" / "a").write_text("1")
    (tmp_path / "y" / "a").write_text("2")
    with pytest.raises(UsageError, match=r"missing\.jsonl: no such file"):
        ask(server.url, "upload_dataset", tmp_path / "missing.jsonl", task="t")
    with pytest.raises(UsageError, match="no files in this folder"):
        ask(server.url, "upload_dataset", tmp_path / "empty", task="t")
    with pytest.raises(UsageError, match="same name"):
        ask(server.url, "upload_dataset", [tmp_path / "x", tmp_path / "y"], task="t")
    assert server.asked == []


@pytest.mark.parametrize("name", ["a b", "a/b", "ä?#", "%41", "name@3"])
def test_names_are_one_segment_of_the_path(server: LittleServer, ask: Ask, name: str) -> None:
    from urllib.parse import unquote

    with pytest.raises(NotFoundError):
        ask(server.url, "adapter", name)
    path = server.asked[0].path
    assert path.count("/") == 3
    assert unquote(path.rpartition("/")[2]) == name


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_is_no_step_in_the_path(server: LittleServer, ask: Ask, name: str) -> None:
    with pytest.raises(UsageError):
        ask(server.url, "delete_adapter", name)
    assert server.asked == []


def test_arguments_are_checked_before_anything_is_sent(server: LittleServer, ask: Ask) -> None:
    with pytest.raises(UsageError, match="name an adapter or a task"):
        ask(server.url, "predict", None, "Hello")
    with pytest.raises(UsageError, match="limit: "):
        ask(server.url, "evaluate", "x", dataset="ds-1", limit=0)
    with pytest.raises(UsageError, match="items: "):
        ask(server.url, "predict_bulk", [])
    assert server.asked == []


def test_the_url_comes_from_the_argument_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Client().url == "http://127.0.0.1:8000"
    monkeypatch.setenv("GRAFT_URL", "https://gpu.example:9000/base/")
    assert Client().url == "https://gpu.example:9000/base"
    assert Client("http://[::1]:1").url == "http://[::1]:1"


@pytest.mark.parametrize("around", [" {} ", "{}\r\n", "\t{}/\n"])
def test_what_an_editor_left_around_the_url_does_no_harm(
    server: LittleServer, ask: Ask, monkeypatch: pytest.MonkeyPatch, around: str
) -> None:
    server.on("GET", "/health/live", document({"status": "ok"}))
    monkeypatch.setenv("GRAFT_URL", around.format(server.url))
    assert ask(None, "live").status == "ok"


def test_a_url_of_blanks_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_URL", " \r\n")
    assert Client().url == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://x",
        "http://",
        "http://x:port",
        "http://[x",
        "http://x\r\n/base",
        "http://\u2028x",
        "http://x/\udce9",
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is not a server URL"):
        Client(url)


def test_the_servers_own_machine_is_not_asked_through_a_proxy(
    server: LittleServer, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    server.on("GET", "/health/live", document({"status": "ok"}))
    assert ask(server.url, "live").status == "ok"


def test_closing_a_stream_hangs_up(server: LittleServer) -> None:
    stopped = []

    def endless(_: Asked) -> Answer:
        def pieces() -> Any:
            try:
                while True:
                    yield b'data: {"event": "delta", "delta": "x"}\n\n' * 1000
            finally:
                stopped.append(True)

        return Answer(200, pieces(), {"Content-Type": "text/event-stream"})

    server.on("POST", "/api/predict", endless)
    with Client(server.url) as client:
        events = client.predict_stream("x", "Hello")
        assert next(iter(events)).delta == "x"
        events.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while not stopped and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stopped


def test_both_clients_have_every_call_with_its_parameters_and_its_documentation() -> None:
    described = {
        name: function
        for name, function in vars(calls).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and name not in ("prediction", "quote")
        and function.__module__ == calls.__name__
    }
    assert len(described) > 25
    for name, function in described.items():
        for kind in (Client, AsyncClient):
            method = getattr(kind, name)
            assert method.__doc__ == function.__doc__
            assert list(inspect.signature(method).parameters)[1:] == list(inspect.signature(function).parameters)


def test_every_error_is_a_graft_error() -> None:
    from graft_client import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, GraftError) for kind in kinds)


def test_the_key_is_sent(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_API_KEY", "graft_1_2")
    with running(LittleServer()) as server:
        server.on("GET", "/api/adapters", document([]))
        ask(server.url, "adapters")
        assert server.asked[-1].headers["authorization"] == "Bearer graft_1_2"


def test_an_empty_key_is_none_at_all(server: LittleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_API_KEY", "graft_1_2")
    server.on("GET", "/api/adapters", document([]))
    with Client(server.url, key="") as client:
        client.adapters()
    assert server.asked[-1].headers["authorization"] is None


def test_a_key_is_no_part_of_the_url() -> None:
    with pytest.raises(UsageError, match="GRAFT_API_KEY") as caught:
        Client("http://me:graft_1_secret@127.0.0.1:1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_may_not(ask: Ask, status: int) -> None:
    with running(LittleServer()) as server:
        server.on("GET", "/api/adapters", problem(status, "a key is needed"))
        with pytest.raises(AccessError, match="a key is needed"):
            ask(server.url, "adapters")
        assert len(server.asked) == 1  # another try would be refused as well
