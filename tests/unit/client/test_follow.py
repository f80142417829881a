"""Following a job while its server goes away: a restart ends nothing."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import pytest

from graft_client.cli import outage
from graft_client.schemas.jobs import JobState
from unit.client import samples
from unit.client.conftest import Graft
from unit.client.little_server import Answer, LittleServer, document, problem, running, sse
from unit.client.test_cli import graft_process, script_catalogue

EVENTS, JOB = "/api/jobs/job-1/events", "/api/jobs/job-1"


def closing(answer: Answer) -> Answer:
    """A connection that is kept would be served on after the server has gone."""
    answer.headers["Connection"] = "close"
    return answer


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "PATIENCE", 0.0)


def test_a_server_that_is_restarted_is_waited_for() -> None:
    first, again = LittleServer(), LittleServer()
    first.on("GET", JOB, closing(document(samples.job(JobState.running))))
    first.on("GET", EVENTS, closing(sse(samples.event(1, "state", state="running"), breaks=True)))
    script_catalogue(again)
    again.on("GET", EVENTS, problem(503, "loading", headers={"Retry-After": "0"}), sse(samples.event(2, "state")))
    with running(first):
        process = graft_process(first, "jobs", "follow", "job-1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None
        assert process.stderr.readline() == b"running\n"
    told = process.stderr.readline().decode()
    # Longer than the client's own retries take.
    time.sleep(2)
    with running(again, int(first.url.rpartition(":")[2])):
        shown, more = process.communicate(timeout=30)
    assert process.returncode == 0
    assert told == f"can't reach {first.url}, retrying\n"
    assert more == b"", "it is told once"
    assert "published de-strings@3" in shown.decode()
    assert next(asked.query for asked in again.asked if asked.path == EVENTS) == {"after": ["1"]}


#: More refusals than the client's own retries take.
DRAINING = 5 * [problem(503, "draining", headers={"Retry-After": "0"})]


@pytest.mark.parametrize("away", [DRAINING, [Answer(502)], [Answer(504)]], ids=["503", "502", "504"])
def test_a_server_that_is_not_ready_is_waited_for(server: LittleServer, graft: Graft, away: list[Answer]) -> None:
    script_catalogue(server)
    server.on("GET", EVENTS, sse(samples.event(1, "state")), *away, sse(samples.event(2, "state")))
    job = document(samples.job(JobState.running))
    server.on("GET", JOB, job, job, document(samples.job()))
    result = graft("jobs", "follow", "job-1")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("retrying") == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("as_json", [False, True])
def test_one_that_stays_away_is_given_up(server: LittleServer, graft: Graft, as_json: bool) -> None:
    server.on("GET", JOB, document(samples.job(JobState.running)))
    server.on("GET", EVENTS, problem(503, "draining", headers={"Retry-After": "0"}))
    result = graft("jobs", "follow", "job-1", *(["--json"] if as_json else []))
    assert result.exit_code == 3
    last: Any = result.stderr.splitlines()[-1]
    text = json.loads(last)["error"]["detail"] if as_json else last
    assert "was away for" in text
    assert "draining" in text
    assert "job job-1 may go on; to follow it again: graft jobs follow job-1" in text


def test_one_that_was_never_there_is_told_at_once(server: LittleServer, graft: Graft) -> None:
    begun = time.monotonic()
    result = graft("jobs", "follow", "job-1", "--url", "http://127.0.0.1:1")
    assert (result.exit_code, "retrying" in result.stderr) == (3, False)
    assert graft("jobs", "follow", "job-1").exit_code == 4
    assert time.monotonic() - begun < 10
