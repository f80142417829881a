"""Two servers of one registry: PostgreSQL, and a folder of artefacts that both read. What one is told both do."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from graft_client.schemas.jobs import JobInfo, JobState
from graft_server.registry.database import IDLE_WRITER_MS, WRITERS_LOCK
from graft_server.registry.servers import BELIEVED
from support.lora_folders import write_lora
from support.postgresql import PostgreSQL, postgresql
from support.processes import WORKER, ServerProcess, eventually, running
from support.serving import sse

pytestmark = pytest.mark.torch

#: Seconds within which every server does what one was told.
SOON = 2.0
LEASE = 3
#: Seconds for which the database is away.
OUTAGE = 30.0
#: Seconds that nothing takes meanwhile.
PROMPTLY = 5.0
#: Some seconds of training.
LONG = {"max_steps": 100, "epochs": 100, "batch_size": 4, "checkpoint_every": 10, "eval_rows": 1, "r": 4}
SHORT = {"max_steps": 3, "epochs": 3, "eval_rows": 1}

Start = Callable[[str], AbstractContextManager[ServerProcess]]


@pytest.fixture(scope="module")
def database() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture(scope="module")
def url(database: PostgreSQL) -> str:
    return database.new_database()


@pytest.fixture(scope="module")
def start(url: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """``start("a")`` is a server with a data folder of its own."""
    folder = tmp_path_factory.mktemp("servers")
    settings = {
        "database_url": url,
        "artefacts_url": (folder / "shared").as_uri(),
        "job_lease_seconds": str(LEASE),
        "batch_takeover_seconds": str(LEASE),
    }
    return lambda name: running(tiny_model, folder / name, "--dtype", "float32", threads=1, **settings)


@pytest.fixture(scope="module")
def pair(start: Start) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    # One after the other would take twice as long, and that both may migrate at once is the point.
    servers = [start("a"), start("b")]
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda server: server.__enter__(), servers)
    try:
        yield first, second
    finally:
        for server in servers:
            server.__exit__(None, None, None)


@pytest.fixture(scope="module", autouse=True)
def _versions(pair: tuple[ServerProcess, ServerProcess], tmp_path_factory: pytest.TempPathFactory) -> None:
    for seed in (1, 2, 3):
        folder = write_lora(tmp_path_factory.mktemp("adapters") / str(seed), seed=seed)
        pair[0].graft("adapters", "register", folder, "--name", "de", "--task", "chat")


def answering(server: ServerProcess, ref: str) -> str | None:
    """Who answers for ``ref``; ``None`` where nobody does."""
    body = {"adapter": ref, "task": "chat", "text": "red", "sampling": {"max_tokens": 1}}
    with server.http() as http:
        response = http.post("/api/predict", json=body)
    if response.status_code == 404:
        return None
    assert response.status_code == 200, response.text
    return str(response.json()["adapter"])


def soon(look: Callable[[], Any], what: str) -> None:
    eventually(look, within=SOON, what=what)


def train(server: ServerProcess, data: Path, name: str, options: dict[str, Any]) -> str:
    settings = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    return str(server.json("train", "translation", "--data", data, "--name", name, *settings, "--detach")["id"])


def train_on(server: ServerProcess, data: Path, name: str, options: dict[str, Any]) -> str:
    """A job that this very server has claimed; where another one was faster, that job is cancelled for a new one."""
    with server.client() as client:
        here = client.status().name
        while True:
            job = train(server, data, name, options)
            if eventually(lambda: client.job(job).server, what="claimed") == here:  # noqa: B023 - asked at once
                return job
            client.cancel_job(job)


def finished(server: ServerProcess, job: str) -> JobInfo:
    with server.client() as client:
        for _ in client.job_events(job):
            pass
        return client.job(job)


def states(server: ServerProcess, job: str) -> list[str]:
    with server.client() as client:
        return [event.data["state"] for event in client.job_events(job, follow=False) if event.kind == "state"]


def test_what_one_is_told_the_other_serves(pair: tuple[ServerProcess, ServerProcess]) -> None:
    first, second = pair
    assert answering(second, "de") == "de@3"
    first.graft("adapters", "promote", "de@1")
    soon(lambda: answering(second, "de@production") == "de@1", "promoted")
    second.graft("adapters", "promote", "de@2")
    soon(lambda: answering(first, "de@production") == "de@2", "promoted at the other one")
    first.graft("adapters", "rollback", "de")
    soon(lambda: answering(second, "de@production") == "de@1", "rolled back")
    first.graft("routes", "set", "words", "de@2=100")
    soon(lambda: answering(second, "words") == "de@2", "routed")
    second.graft("routes", "set", "words", "de@1=100")
    soon(lambda: answering(first, "words") == "de@1", "routed elsewhere")
    first.graft("routes", "delete", "words", "--yes")
    soon(lambda: answering(second, "words") is None, "the route is gone")
    first.graft("adapters", "delete", "de@3", "--yes")
    soon(lambda: answering(second, "de@3") is None, "deleted")


def test_a_pin_holds_on_every_server(pair: tuple[ServerProcess, ServerProcess]) -> None:
    first, second = pair

    def pinned() -> list[tuple[str, bool]]:
        with second.client() as client:
            return [(version.ref, version.loaded) for version in client.status().pinned]

    first.graft("adapters", "pin", "de@2")
    soon(lambda: pinned() == [("de@2", True)], "pinned")
    first.graft("adapters", "unpin", "de@2")
    soon(lambda: pinned() == [], "unpinned")


def test_of_two_promotes_at_once_one_wins_and_the_other_is_told(pair: tuple[ServerProcess, ServerProcess]) -> None:
    def promote(server: ServerProcess, version: int) -> httpx.Response:
        with server.http() as http:
            # Both have seen the same version in place.
            return http.post("/api/adapters/de/aliases/contested", json={"version": version, "in_place": 0})

    with ThreadPoolExecutor() as pool:
        answers = [call.result() for call in [pool.submit(promote, server, n + 1) for n, server in enumerate(pair)]]
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    lost = next(answer for answer in answers if answer.status_code == 409)
    assert "nothing was changed" in lost.json()["detail"]
    won = next(answer for answer in answers if answer.status_code == 200).json()["version"]
    assert {answering(server, "de@contested") for server in pair} == {f"de@{won}"}


def test_jobs_run_once_each_and_on_both(pair: tuple[ServerProcess, ServerProcess], translations: Path) -> None:
    first, second = pair
    jobs = [train(first, translations, f"once-{number}", SHORT) for number in range(2)]
    for number, job in enumerate(jobs):
        done = finished(second, job)
        assert (done.state, done.version, done.attempts) == (JobState.succeeded, f"once-{number}@1", 1)
        assert states(first, job) == ["queued", "running", "evaluating", "succeeded"]
    # Each kept the folder of the jobs that it ran.
    logs = {server: {file.parent.name for file in server.data_dir.glob("jobs/*/worker.log")} for server in pair}
    assert logs[first] | logs[second] == set(jobs)
    assert logs[first] & logs[second] == set()
    assert all(logs.values())


def test_a_job_is_cancelled_through_the_other_server(
    pair: tuple[ServerProcess, ServerProcess], translations: Path
) -> None:
    first, second = pair
    job = train(first, translations, "stopped", LONG)
    eventually(lambda: "running" in states(first, job), what="at work")
    second.graft("jobs", "cancel", job)
    assert finished(first, job).state is JobState.cancelled


def test_a_job_goes_on_elsewhere_when_its_server_is_stopped_or_killed(
    pair: tuple[ServerProcess, ServerProcess], start: Start, translations: Path, url: str
) -> None:
    first = pair[0]
    with start("doomed") as doomed:
        hung = train_on(doomed, translations, "hung", LONG | {"max_steps": 30})
        worker = doomed.child(WORKER)
        stop_in_a_change(doomed, url)
        # The others can't write before the stopped one has lost its change.
        taken_over(first, hung, within=2 * LEASE + IDLE_WRITER_MS / 1000)
        assert first.json("jobs", "show", hung)["server"] in {server.json("status")["name"] for server in pair}
        doomed.process.send_signal(signal.SIGCONT)
        # It notices by itself that the job is not its own any more.
        eventually(lambda: not worker.is_running(), within=LEASE + 2, what="the first worker is gone")
        went_on(first, hung, "hung@1")
        assert "is not at work on this server any more" in doomed.log

        killed = train_on(doomed, translations, "killed", LONG | {"max_steps": 200})
        shared = doomed.data_dir.parent / "shared" / "checkpoints" / killed
        eventually(lambda: shared.is_dir() and any(shared.iterdir()), what="a checkpoint that others can read")
        doomed.kill()
        taken_over(first, killed)
        went_on(first, killed, "killed@1")
        # Not anew: the first step that its successor told of lies behind the checkpoint.
        assert first_step_of_the_last_run(first, killed) > LONG["checkpoint_every"]
        eventually(lambda: not shared.exists(), what="the checkpoints in the shared store are gone")


def stop_in_a_change(server: ServerProcess, url: str) -> None:
    """SIGSTOP while the server has the right to write, which is the worst moment for the others."""
    with psycopg.connect(url, autocommit=True) as database:

        def writers(*, granted: bool) -> set[int]:
            found = database.execute(
                "select pid from pg_locks where locktype = 'advisory' and granted = %s and database = "
                "(select oid from pg_database where datname = current_database())",
                [granted],
            )
            return {pid for (pid,) in found}

        while True:
            with psycopg.connect(url) as other:
                other.execute("select pg_advisory_xact_lock(%s)", [WRITERS_LOCK])
                eventually(lambda: writers(granted=False), what="a server waits for its turn")
                server.process.send_signal(signal.SIGSTOP)
            # Whoever waited has had its turn by now, but for one that does not run.
            time.sleep(1.0)
            held = writers(granted=True)
            time.sleep(0.5)
            if held & writers(granted=True):
                return
            server.process.send_signal(signal.SIGCONT)


def taken_over(server: ServerProcess, job: str, *, within: float = 5 * LEASE) -> None:
    eventually(lambda: states(server, job).count("running") == 2, within=within, what="taken over")


def went_on(server: ServerProcess, job: str, version: str) -> None:
    done = finished(server, job)
    assert (done.state, done.version, done.attempts) == (JobState.succeeded, version, 2)
    assert states(server, job) == ["queued", "running", "queued", "running", "evaluating", "succeeded"]


def first_step_of_the_last_run(server: ServerProcess, job: str) -> int:
    with server.client() as client:
        events = list(client.job_events(job, follow=False))
    begun = max(event.seq for event in events if event.kind == "state" and event.data["state"] == "running")
    return next(
        int(event.data["step"])
        for event in events
        if event.seq > begun and event.kind == "metrics" and event.data["phase"] == "training"
    )


def test_a_batch_is_answered_elsewhere_when_its_server_is_killed(
    pair: tuple[ServerProcess, ServerProcess], start: Start
) -> None:
    message = {"role": "user", "content": "red"}
    lines = [
        {
            "custom_id": f"r{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "de@1", "messages": [message], "max_tokens": 24},
        }
        for number in range(300)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    with start("lost") as lost, lost.http() as http:
        file = http.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}).json()
        asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = http.post("/v1/batches", json=asked).json()["id"]
        eventually(lambda: http.get(f"/v1/batches/{batch}").json()["request_counts"]["completed"], what="at work")
        lost.kill()
    with pair[0].http() as http:
        assert http.get(f"/v1/batches/{batch}").json()["status"] == "in_progress"
        done = eventually(
            lambda: (found := http.get(f"/v1/batches/{batch}").json())["status"] == "completed" and found,
            within=BELIEVED.total_seconds() + 60,
            what="answered by another server",
        )
        output = http.get(f"/v1/files/{done['output_file_id']}/content").text
    assert sorted(json.loads(line)["custom_id"] for line in output.splitlines()) == sorted(
        str(line["custom_id"]) for line in lines
    )
    assert done["request_counts"] == {"total": 300, "completed": 300, "failed": 0}


class Stream:
    """A long answer, read by a thread of its own as somebody without our library would."""

    def __init__(self, server: ServerProcess, key: str | None = None) -> None:
        self.begun = threading.Event()
        self.events: list[dict[str, str]] = []
        self._headers = bearer(key) if key else {}
        self._server = server
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self.begun.wait(timeout=30)

    def _read(self) -> None:
        sampling = {"max_tokens": 4000, "ignore_eos": True}
        body = {"adapter": "de@1", "task": "chat", "text": "Go on", "stream": True, "sampling": sampling}
        with (
            self._server.http(headers=self._headers) as http,
            http.stream("POST", "/api/predict", json=body) as response,
        ):
            for line in response.iter_lines():
                if line.startswith("event: "):
                    self.events += sse(line)
                    self.begun.set()

    def end(self) -> str:
        """The kind of its last event."""
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()
        return self.events[-1]["event"]


class Caller:
    """Somebody who asks for an answer again and again, and how that went."""

    def __init__(self, server: ServerProcess, ref: str) -> None:
        #: When each request began and how long it took, in seconds, and who answered.
        self.answers: list[tuple[float, float, str | None]] = []
        self._body = {"adapter": ref, "task": "chat", "text": "red", "sampling": {"max_tokens": 1}}
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()
        eventually(lambda: len(self.answers) >= 3, what="answers")

    def _ask(self) -> None:
        with self._server.http() as http:
            while not self._over.wait(0.1):
                begun = time.monotonic()
                response = http.post("/api/predict", json=self._body)
                who = response.json()["adapter"] if response.status_code == 200 else response.text
                self.answers.append((begun, time.monotonic() - begun, who))

    def between(self, begin: float, end: float) -> list[tuple[float, float, str | None]]:
        """What was asked in this time; ends the asking."""
        self._over.set()
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()
        return [answer for answer in self.answers if begin <= answer[0] <= end]


def test_a_database_that_is_away_for_half_a_minute_ends_no_answer_and_loses_nothing(
    pair: tuple[ServerProcess, ServerProcess], database: PostgreSQL, translations: Path
) -> None:
    first, second = pair
    first.graft("adapters", "promote", "de@1", "steady")
    job = train(first, translations, "patient", LONG)
    eventually(lambda: "running" in states(first, job), what="at work")
    stream = Stream(second)
    callers = [Caller(server, "de@steady") for server in pair]
    database.stop()
    gone = time.monotonic()
    try:
        with first.http() as http:
            refused = http.post("/api/adapters/de/aliases/steady", json={"version": 2})
        assert time.monotonic() - gone < PROMPTLY
        assert (refused.status_code, refused.json()["code"]) == (503, "registry-unavailable")
        assert "does not answer; nothing was changed, try again soon" in refused.json()["detail"]
        assert stream.end() == "result"
        # Also long enough for the claim of the job to run out.
        time.sleep(max(0.0, gone + OUTAGE - time.monotonic()))
    finally:
        back = time.monotonic()
        database.start()
    assert back - gone >= OUTAGE
    for caller in callers:
        asked = caller.between(gone, back)
        assert {who for _, _, who in asked} == {"de@1"}
        assert max(took for _, took, _ in asked) < PROMPTLY
        ends = [gone, *(begun + took for begun, took, _ in asked), back]
        assert max(later - earlier for earlier, later in pairwise(ends)) < PROMPTLY, "no pause in all that time"
    assert [answering(server, "de@steady") for server in pair] == ["de@1"] * 2
    first.graft("adapters", "promote", "de@2", "steady")
    soon(lambda: answering(second, "de@steady") == "de@2", "promoted")
    # The other server had a right to the job, but did not take it: the first one had no way to renew its claim.
    done = finished(second, job)
    assert (done.state, done.version, done.attempts) == (JobState.succeeded, "patient@1", 1)


def test_a_limit_holds_for_both_together(pair: tuple[ServerProcess, ServerProcess]) -> None:
    first, second = pair

    def both_count_two() -> bool:
        return all(server.json("status")["servers"] == 2 for server in pair)

    # Servers that earlier tests have killed count for half a minute.
    eventually(both_count_two, within=60, what="two servers, as both see it")
    assert first.json("status")["warnings"] == []
    first.graft("adapters", "limit", "de", "--requests-per-minute", "6")
    body = {"adapter": "de@1", "task": "chat", "text": "red", "sampling": {"max_tokens": 1}}
    eventually(lambda: limit_of(second, body) == "3", within=SOON, what="limited")
    begun = time.monotonic()
    with first.http() as one, second.http() as two:
        codes = [http.post("/api/predict", json=body).status_code for _ in range(8) for http in (one, two)]
    refilled = (time.monotonic() - begun) / 10
    assert set(codes) == {200, 429}
    # One or two were asked before, to see the limit.
    assert 3 <= codes.count(200) <= 6 + refilled
    second.graft("adapters", "limit", "de", "--requests-per-minute", "default")
    eventually(lambda: limit_of(first, body) is None, within=SOON, what="not limited")


def limit_of(server: ServerProcess, body: dict[str, Any]) -> str | None:
    with server.http() as http:
        return http.post("/api/predict", json=body).headers.get("x-ratelimit-limit-requests")


def test_a_revoked_key_is_refused_by_both_also_within_an_answer(pair: tuple[ServerProcess, ServerProcess]) -> None:
    """The last test here: from the first key on, every request needs one."""
    first, second = pair
    admin = first.json("keys", "create", "--name", "me", "--scope", "admin")["key"]
    with first.http(headers=bearer(admin)) as http:
        made = http.post("/api/keys", json={"name": "app", "scopes": ["query"]}).json()
        # Until the other server knows that there are keys it answers everybody, and on nobody's account.
        eventually(lambda: not answers(second, "nobody"), within=SOON, what="closed to strangers")
        assert answers(second, made["key"])
        stream = Stream(second, made["key"])
        assert http.delete(f"/api/keys/{made['id']}").status_code == 200
    revoked = time.monotonic()
    assert stream.end() == "error"
    assert time.monotonic() - revoked < SOON
    for server in pair:
        eventually(lambda: not answers(server, made["key"]), within=SOON, what="refused")  # noqa: B023 - asked at once


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def answers(server: ServerProcess, key: str) -> bool:
    with server.http(headers=bearer(key)) as http:
        return http.get("/api/adapters").status_code == 200
