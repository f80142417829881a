"""Every command against the little server, as a script sees it: what is sent, printed, and returned."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from graft_client.schemas.jobs import JobState
from graft_client.schemas.predict import EvaluationEvent
from graft_client.schemas.status import PinnedVersion
from unit.client import samples
from unit.client.conftest import Graft
from unit.client.little_server import Answer, Asked, LittleServer, document, ndjson, problem, sse

ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def graft_process(server: LittleServer, *args: str, **options: Any) -> subprocess.Popen[bytes]:
    """``graft`` in a process of its own."""
    program = [sys.executable, "-c", "from graft_client.cli import main; main()", *args]
    env = {**os.environ, "GRAFT_URL": server.url, "TERM": "xterm-256color", "COLUMNS": "100"}
    return subprocess.Popen(program, env=env, **options)


def on_terminal(server: LittleServer, *args: str, typed: bytes = b"") -> tuple[int, str]:
    """The exit code of ``graft`` and all it shows on a terminal of its own."""
    main, end = pty.openpty()
    process = graft_process(server, *args, stdout=end, stderr=end, stdin=end)
    os.close(end)
    os.write(main, typed)
    seen = b""
    with suppress(OSError):  # how Linux says that the other end has closed
        while piece := os.read(main, 4096):
            seen += piece
    os.close(main)
    return process.wait(timeout=30), seen.decode()


def script_catalogue(server: LittleServer) -> None:
    """The routes that only read."""
    server.on("GET", "/api/tasks", document([samples.TASK]))
    server.on("GET", "/api/tasks/translation", document(samples.TASK))
    server.on("GET", "/api/training", document(samples.TRAINING))
    server.on("GET", "/api/plugins", document(samples.PLUGINS))
    server.on("GET", "/api/status", document(samples.STATUS))
    server.on("GET", "/api/datasets", document([samples.DATASET]))
    server.on("GET", "/api/datasets/ds-1", document(samples.DATASET))
    server.on("GET", "/api/jobs", document([samples.job()]))
    server.on("GET", "/api/jobs/job-1", document(samples.job()))
    server.on("GET", "/api/adapters", document([samples.ADAPTER]))
    server.on("GET", "/api/adapters/de-strings", document(samples.ADAPTER))
    server.on("GET", "/api/adapters/de-strings/versions/3", document(samples.version()))


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["tasks", "list"], ["translation", "jsonl, po"]),
        (["tasks", "show", "translation"], ["source, [context]", "epochs", "2", "--method lora", "The rank."]),
        (["plugins", "list"], ["translation", "left out: weather, register_tasks, weather.py:7: no name"]),
        (["status"], ["smollm2", "135 M", "8,192 tokens", "torch (ready)", "up 1:15", "3 succeeded"]),
        (["datasets", "list"], ["ds-1", "a.jsonl"]),
        (["datasets", "show", "ds-1"], ["ds-1", "20 B", "0" * 64]),
        (["jobs", "list"], ["job-1", "succeeded", "10/10", "de-strings@3"]),
        (["jobs", "show", "job-1"], ["r=16", "10 of 10", "1.25"]),
        (["adapters", "list"], ["de-strings@3", "chrf 30.5"]),
        (["adapters", "show", "de-strings"], ["de-strings@2", "3.0 MiB", "+13"]),
        (["adapters", "show", "de-strings@3"], ["smollm2 (aaaaaaaaaaaa)", "31000", "+13"]),
    ],
)
def test_reading_commands_print_tables_and_json(
    server: LittleServer, graft: Graft, command: list[str], shown: list[str]
) -> None:
    script_catalogue(server)
    plain = graft(*command)
    assert plain.exit_code == 0, plain.output
    assert "\x1b" not in plain.output
    for text in shown:
        assert text in plain.output
    machine = graft(*command, "--json")
    assert machine.exit_code == 0
    assert json.loads(machine.stdout)
    assert machine.stderr == ""


def test_json_is_the_servers_own_document(server: LittleServer, graft: Graft) -> None:
    script_catalogue(server)
    printed = json.loads(graft("adapters", "show", "de-strings@3", "--json").stdout)
    assert printed == samples.version().model_dump(mode="json")


def test_a_terminal_gets_a_table_with_styles(server: LittleServer) -> None:
    script_catalogue(server)
    code, shown = on_terminal(server, "tasks", "list")
    assert code == 0
    assert "\x1b[1m" in shown
    assert "─" in shown
    assert "translation" in ANSI.sub("", shown)


def test_a_terminal_gets_a_live_bar_while_training(server: LittleServer, tmp_path: Path) -> None:
    script_training(server, JobState.succeeded)
    (tmp_path / "a.jsonl").write_text("{}")
    code, shown = on_terminal(server, "train", "translation", "--data", str(tmp_path), "--name", "de-strings")
    assert code == 0
    text = ANSI.sub("", shown)
    assert re.search(r"training +[━╺]+ +5/10 loss 2\.500  300 tok/s  9\.0 s left", text)
    assert "2 rows are longer than max_length" in text
    assert "published de-strings@3" in text


def test_a_terminal_gets_a_footer_after_an_answer(server: LittleServer) -> None:
    server.on("POST", "/api/predict", sse(samples.delta("Hal\x1b[2Jlo"), samples.result(samples.answer())))
    _, shown = on_terminal(server, "query", "de-strings", "Hello")
    assert "Hal[2Jlo" in shown
    assert "de-strings@3  12 + 3 tokens  0.50 s" in ANSI.sub("", shown)


def test_a_terminal_is_asked_before_something_is_deleted(server: LittleServer) -> None:
    script_catalogue(server)
    server.on("DELETE", "/api/adapters/de-strings", Answer(204))
    code, shown = on_terminal(server, "adapters", "delete", "de-strings", typed=b"n\n")
    assert "Delete adapter de-strings with 2 version(s)?" in shown
    assert code == 1
    assert not any(path.startswith("DELETE") for path in server.paths())
    code, _ = on_terminal(server, "adapters", "delete", "de-strings", typed=b"y\n")
    assert code == 0
    assert server.paths()[-1] == "DELETE /api/adapters/de-strings"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (problem(404, "no adapter `x`", nearest="y"), 4),
        (problem(409, "in use"), 5),
        (problem(422, "bad rank"), 5),
        (problem(500, "a fault"), 1),
        (problem(503, "draining", headers={"Retry-After": "0"}), 6),
    ],
)
def test_exit_codes_say_what_kind_of_error_it_was(server: LittleServer, graft: Graft, reply: Answer, code: int) -> None:
    server.on("GET", "/api/adapters/x", reply)
    detail = json.loads(next(iter(reply.pieces)))["detail"]
    plain = graft("adapters", "show", "x")
    assert plain.exit_code == code
    assert plain.stderr.startswith(f"Error: {detail}")
    assert plain.stdout == ""
    machine = graft("adapters", "show", "x", "--json")
    assert machine.exit_code == code
    assert json.loads(machine.stderr)["error"]["detail"] == detail


def test_the_nearest_name_and_the_places_are_told(server: LittleServer, graft: Graft) -> None:
    places = [{"place": f"a.jsonl:{n}", "message": "no target"} for n in range(1, 25)]
    server.on("GET", "/api/adapters/x", problem(404, "no adapter `x`.", nearest="y", errors=places))
    told = graft("adapters", "show", "x").stderr.splitlines()
    assert told[0] == "Error: no adapter `x`. Did you mean `y`?"
    assert told[1] == "  a.jsonl:1: no target"
    assert told[-1] == "  and 4 more"


def test_no_server_is_3_and_says_how_to_start_one(graft: Graft) -> None:
    result = graft("status", "--url", "http://127.0.0.1:1")
    assert result.exit_code == 3
    assert "graft serve" in result.stderr


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["stauts"], "did you mean `status`?"),
        (["jobs", "lits"], "did you mean `list`?"),
        (["train", "translation", "--data", "nowhere.jsonl", "--name", "x"], "'nowhere.jsonl' does not exist"),
        (["status", "--url", "localhost:8000"], "`localhost:8000` is not a server URL"),
        (["query"], "name an adapter"),
        (["query", "x", "a", "--input", "{}"], "not both"),
        (["query", "x", "--input", "[1]"], "must be a JSON object"),
        (["query", "x", "--input", "{"], "not JSON"),
        (["adapters", "show", "x@"], "is not NAME, NAME@NUMBER or NAME@ALIAS"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_2(graft: Graft, command: list[str], told: str) -> None:
    result = graft(*command)
    assert result.exit_code == 2
    assert told in result.stderr


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["query"], "name an adapter"),
        (["query", "x", "--input", "{"], "not JSON"),
        (["train", "translation"], "Missing option '--data'"),
        (["jobs", "list", "--limit", "none"], "'none' is not a valid integer"),
        (["jobs", "follow"], "Missing argument 'JOB'"),
        (["adapters", "delete", "de-strings"], "--yes"),
        (["status", "--url", "localhost:8000"], "is not a server URL"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_told_as_json(
    server: LittleServer, graft: Graft, command: list[str], told: str
) -> None:
    script_catalogue(server)
    result = graft(*command, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    error = json.loads(result.stderr)["error"]
    assert told in error["detail"]
    assert error["exit_code"] == 2


def test_status_of_a_server_that_is_not_ready_is_6(server: LittleServer, graft: Graft) -> None:
    server.on("GET", "/api/status", document(samples.STATUS.model_copy(update={"ready": False})))
    assert graft("status").exit_code == 6


def script_training(server: LittleServer, end: JobState, **job: Any) -> None:
    script_catalogue(server)
    server.on("POST", "/api/jobs/check", document({"options": {"r": 16}}))
    server.on("POST", "/api/datasets", document(samples.DATASET, 201))
    server.on("POST", "/api/jobs", document(samples.job(JobState.queued), 201))
    server.on(
        "GET",
        "/api/jobs/job-1/events",
        sse(
            samples.event(1, "state", state="running"),
            samples.event(
                2, phase="training", step=5, total_steps=10, loss=2.5, tokens_per_second=300.0, eta_seconds=9
            ),
            samples.event(3, "log", message="2 rows are longer than max_length"),
            breaks=True,
        ),
        sse(samples.event(4, "state", state=end)),
    )
    server.on("GET", "/api/jobs/job-1", document(samples.job(end, **job)))


def test_train_uploads_follows_and_compares(server: LittleServer, graft: Graft, tmp_path: Path) -> None:
    script_training(server, JobState.succeeded)
    data = tmp_path / "strings.jsonl"
    data.write_text('{"source": "a", "target": "b"}\n')
    settings = ["--set", "r=16", "--set", "lr=1e-3", "--set", "target=q_proj", "--set", 'l=["a"]', "--seed", "7"]
    result = graft("train", "translation", "--data", str(data), "--name", "de-strings", *settings)
    assert result.exit_code == 0, result.output
    created = next(asked for asked in server.asked if asked.method == "POST" and asked.path == "/api/jobs")
    assert created.json() == {
        "task": "translation",
        "dataset": "ds-1",
        "adapter": "de-strings",
        "method": "lora",
        "options": {"r": 16, "lr": 1e-3, "target": "q_proj", "l": ["a"], "seed": 7},
    }
    assert "training step 5 of 10  loss 2.500  300 tok/s  9.0 s left" in result.stderr
    assert "2 rows are longer than max_length" in result.stderr
    table = [line.split() for line in result.stdout.splitlines()]
    assert table[0] == ["metric", "base", "de-strings@3", "change", "copy"]
    assert table[1] == ["chrf", "17.5", "30.5", "+13", "31"]
    assert "the copy baseline does better than de-strings@3 on chrf" in result.stdout
    assert "published de-strings@3 (900 rows, trained in 1:40 at 310 tok/s)" in result.stdout


def test_train_prints_one_json_object(server: LittleServer, graft: Graft, tmp_path: Path) -> None:
    script_training(server, JobState.succeeded)
    (tmp_path / "a.jsonl").write_text("{}")
    result = graft("train", "translation", "--data", str(tmp_path), "--name", "de-strings", "--json")
    printed = json.loads(result.stdout)
    assert printed["job"]["state"] == "succeeded"
    assert printed["version"]["ref"] == "de-strings@3"
    assert result.stderr == ""


def test_train_detached_prints_the_id_alone(server: LittleServer, graft: Graft, tmp_path: Path) -> None:
    script_training(server, JobState.succeeded)
    (tmp_path / "a.jsonl").write_text("{}")
    result = graft("train", "translation", "--data", str(tmp_path), "--name", "x", "--detach")
    assert result.exit_code == 0
    assert result.stdout == "job-1\n"
    assert "GET /api/jobs/job-1/events" not in server.paths()


@pytest.mark.parametrize(
    ("refusal", "code", "told"),
    [
        (problem(404, "no task.", nearest="translation"), 4, "Error: no task. Did you mean `translation`?\n"),
        (problem(422, "no option.", nearest="epochs"), 5, "Error: no option. Did you mean `epochs`?\n"),
    ],
)
def test_what_is_refused_is_told_before_the_upload(
    server: LittleServer, graft: Graft, tmp_path: Path, refusal: Answer, code: int, told: str
) -> None:
    server.on("POST", "/api/jobs/check", refusal)
    (tmp_path / "a.jsonl").write_text("{}")
    result = graft("train", "transl", "--data", str(tmp_path), "--name", "x", "--set", "epoch=2", "--method", "dora")
    assert (result.exit_code, result.stderr) == (code, told)
    assert server.paths() == ["POST /api/jobs/check"]
    assert server.asked[0].json() == {"task": "transl", "adapter": "x", "method": "dora", "options": {"epoch": 2}}


@pytest.mark.parametrize(
    ("end", "told"), [(JobState.failed, "failed: out of memory"), (JobState.cancelled, "cancelled")]
)
def test_a_job_that_fails_is_7(server: LittleServer, graft: Graft, end: JobState, told: str) -> None:
    script_training(server, end, error="out of memory" if end is JobState.failed else None)
    result = graft("jobs", "follow", "job-1")
    assert result.exit_code == 7
    assert told in result.stderr
    assert "graft jobs resume job-1" in result.stderr
    machine = graft("jobs", "follow", "job-1", "--json")
    assert machine.exit_code == 7
    assert json.loads(machine.stdout)["job"]["state"] == end


def test_ctrl_c_stops_following_and_not_the_job(server: LittleServer) -> None:
    script_catalogue(server)
    process: subprocess.Popen[bytes]

    def pieces() -> Any:
        yield from sse(samples.event(1, "state", state="running")).pieces
        process.send_signal(signal.SIGINT)
        yield b": still running\n\n"
        process.wait(timeout=30)

    def events(_: Asked) -> Answer:
        return Answer(200, pieces(), {"Content-Type": "text/event-stream"})

    server.on("GET", "/api/jobs/job-1/events", events)
    process = graft_process(server, "jobs", "follow", "job-1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"job job-1 goes on" in told
    assert b"graft jobs cancel job-1" in told
    assert not any(path.endswith("/cancel") for path in server.paths())


@pytest.mark.parametrize("verb", ["cancel", "resume"])
def test_jobs_are_cancelled_and_resumed(server: LittleServer, graft: Graft, verb: str) -> None:
    server.on("POST", f"/api/jobs/job-1/{verb}", document(samples.job(JobState.cancelled)))
    assert graft("jobs", verb, "job-1").exit_code == 0
    assert json.loads(graft("jobs", verb, "job-1", "--json").stdout)["id"] == "job-1"


def test_jobs_are_listed_by_state(server: LittleServer, graft: Graft) -> None:
    server.on("GET", "/api/jobs", document([]))
    assert graft("jobs", "list", "--state", "failed", "--limit", "3").exit_code == 0
    assert server.asked[0].query == {"state": ["failed"], "limit": ["3"]}
    assert graft("jobs", "list", "--state", "lost").exit_code == 2


def test_datasets_check_reports_every_bad_row(server: LittleServer, graft: Graft, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    server.on("POST", "/api/datasets/check", document(samples.CHECK))
    assert graft("datasets", "check", str(tmp_path), "--task", "translation").exit_code == 0
    bad = samples.CHECK.model_dump(mode="json") | {
        "bad_rows": 1,
        "errors": [{"place": "a.jsonl:2:target", "message": "missing"}],
    }
    server.on("POST", "/api/datasets/check", document(bad))
    result = graft("datasets", "check", str(tmp_path), "--task", "translation")
    assert result.exit_code == 5
    assert "a.jsonl:2:target: missing" in result.stderr
    assert server.asked[-1].form()[1] == {"a.jsonl": b"{}"}


def test_deleting_needs_a_yes(server: LittleServer, graft: Graft) -> None:
    script_catalogue(server)
    for path in ("/api/adapters/de-strings", "/api/adapters/de-strings/versions/3", "/api/datasets/ds-1"):
        server.on("DELETE", path, Answer(204))
    for command in (["adapters", "delete", "de-strings"], ["datasets", "delete", "ds-1"]):
        refused = graft(*command)
        assert refused.exit_code == 2
        assert "--yes" in refused.stderr
    assert not any(path.startswith("DELETE") for path in server.paths())
    assert graft("adapters", "delete", "de-strings@3", "--yes").exit_code == 0
    assert server.paths()[-1] == "DELETE /api/adapters/de-strings/versions/3"
    assert graft("adapters", "delete", "de-strings", "--yes", "--json").exit_code == 0
    assert server.paths()[-1] == "DELETE /api/adapters/de-strings"
    assert graft("datasets", "delete", "ds-1", "--yes").exit_code == 0
    assert server.paths()[-1] == "DELETE /api/datasets/ds-1"


def script_pins(server: LittleServer, *pinned: int) -> None:
    """An adapter with two versions, of which some are pinned."""
    versions = [samples.version(number, pinned=number in pinned) for number in (2, 3)]
    adapter = samples.ADAPTER.model_copy(update={"versions": versions})
    server.on("GET", "/api/adapters", document([adapter]))
    server.on("GET", "/api/adapters/de-strings", document(adapter))
    for number in (2, 3):
        path = f"/api/adapters/de-strings/versions/{number}"
        server.on("GET", path, document(versions[number - 2]))
        server.on("POST", f"{path}/pin", document(samples.version(number, pinned=True)))
        server.on("DELETE", f"{path}/pin", document(samples.version(number)))


def test_pin_takes_the_latest_version_or_the_one_that_is_named(server: LittleServer, graft: Graft) -> None:
    script_pins(server)
    assert graft("adapters", "pin", "de-strings").stdout == "pinned de-strings@3\n"
    assert server.paths()[-1] == "POST /api/adapters/de-strings/versions/3/pin"
    assert graft("adapters", "pin", "de-strings@2").stdout == "pinned de-strings@2\n"
    assert server.paths()[-1] == "POST /api/adapters/de-strings/versions/2/pin"
    assert json.loads(graft("adapters", "pin", "de-strings", "--json").stdout)["pinned"] is True
    server.on("POST", "/api/adapters/de-strings/versions/3/pin", problem(409, "1 of 2 slots are pinned"))
    refused = graft("adapters", "pin", "de-strings")
    assert (refused.exit_code, refused.stderr) == (5, "Error: 1 of 2 slots are pinned\n")


def test_unpin_takes_every_pin_off_or_the_one_that_is_named(server: LittleServer, graft: Graft) -> None:
    script_pins(server, 2, 3)
    assert graft("adapters", "unpin", "de-strings").stdout == "unpinned de-strings@2, de-strings@3\n"
    assert graft("adapters", "unpin", "de-strings@2").stdout == "unpinned de-strings@2\n"
    assert server.paths()[-1] == "DELETE /api/adapters/de-strings/versions/2/pin"
    printed = json.loads(graft("adapters", "unpin", "de-strings@3", "--json").stdout)
    assert [version["ref"] for version in printed] == ["de-strings@3"]
    script_pins(server)
    asked = len(server.asked)
    assert graft("adapters", "unpin", "de-strings").stdout == "no version of de-strings is pinned\n"
    assert len(server.asked) == asked + 1


def test_pinned_versions_are_marked(server: LittleServer, graft: Graft) -> None:
    script_pins(server, 2)
    listed = [line.split() for line in graft("adapters", "list").stdout.splitlines()]
    assert listed[1][listed[0].index("pinned") + 1] == "@2", "the score is two words"
    shown = graft("adapters", "show", "de-strings").stdout.splitlines()
    assert [line.split()[:2] for line in shown if "@" in line][:2] == [["de-strings@2", "yes"], ["de-strings@3", "-"]]
    assert re.search(r"^pinned +yes$", graft("adapters", "show", "de-strings@2").stdout, re.MULTILINE)
    assert re.search(r"^pinned +no$", graft("adapters", "show", "de-strings@3").stdout, re.MULTILINE)


def test_status_tells_of_pins_that_are_not_loaded(server: LittleServer, graft: Graft) -> None:
    pins = [
        PinnedVersion(ref="a@1", loaded=True),
        PinnedVersion(ref="b@2", loaded=False, error="b@2: adapter_config.json is missing"),
        PinnedVersion(ref="c@3", loaded=False),
    ]
    server.on("GET", "/api/status", document(samples.STATUS.model_copy(update={"pinned": pins})))
    told = "a@1, b@2 (not loaded: b@2: adapter_config.json is missing), c@3 (not loaded)"
    assert re.search(rf"^pinned +{re.escape(told)}$", graft("status").stdout, re.MULTILINE)


def test_status_tells_of_other_servers_and_what_to_change(server: LittleServer, graft: Graft) -> None:
    assert not re.search(r"^(servers|warning) ", graft("status").stdout, re.MULTILINE)
    two = samples.STATUS.model_copy(update={"servers": 2, "warnings": ["`artefacts_url` is not set"]})
    server.on("GET", "/api/status", document(two))
    shown = graft("status").stdout
    assert re.search(r"^servers +2 of this registry$", shown, re.MULTILINE)
    assert re.search(r"^warning +`artefacts_url` is not set$", shown, re.MULTILINE)


def peft_folder(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(name.encode())
    return folder


def test_register_sends_the_needed_files_alone(server: LittleServer, graft: Graft, tmp_path: Path) -> None:
    names = ("adapter_config.json", "adapter_model.safetensors", "task_state.json", "training_args.bin", "notes.txt")
    folder = peft_folder(tmp_path / "a", *names)
    server.on("POST", "/api/adapters", document(samples.version(1), 201))
    result = graft("adapters", "register", str(folder), "--name", "x", "--task", "translation")
    assert result.exit_code == 0, result.output
    fields, files = server.asked[0].form()
    assert fields == {"name": "x", "task": "translation"}
    assert set(files) == set(names[:3])


def test_register_sends_the_rows_that_tell_what_it_is_for(server: LittleServer, graft: Graft, tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "a", "adapter_config.json", "adapter_model.safetensors")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "why?"}')
    server.on("POST", "/api/adapters", document(samples.version(1), 201))
    words = ("adapters", "register", str(folder), "--name", "x", "--task", "domain-qa", "--profile", str(rows))
    assert graft(*words).exit_code == 0
    assert b'name="profile"; filename="rows.jsonl"' in server.asked[0].body


def test_register_refuses_a_folder_before_sending_it(server: LittleServer, graft: Graft, tmp_path: Path) -> None:
    def register(folder: Path) -> Any:
        return graft("adapters", "register", str(folder), "--name", "x", "--task", "translation")

    missing = register(tmp_path / "nowhere")
    assert (missing.exit_code, "no such folder" in missing.stderr) == (2, True)
    pickled = register(peft_folder(tmp_path / "p", "adapter_config.json", "adapter_model.bin"))
    assert pickled.exit_code == 5
    assert "adapter_model.bin: pickled weights can run code" in pickled.stderr
    bare = register(peft_folder(tmp_path / "b", "adapter_model.safetensors"))
    assert bare.exit_code == 5
    assert "adapter_config.json: missing" in bare.stderr
    assert server.asked == []


@pytest.mark.parametrize("prefix", ["", "x/"])
def test_register_takes_an_archive_of_a_folder(server: LittleServer, graft: Graft, tmp_path: Path, prefix: str) -> None:
    place = tmp_path / "x.zip"
    with zipfile.ZipFile(place, "w") as writer:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            writer.writestr(prefix + name, name)
    server.on("POST", "/api/adapters", document(samples.version(1), 201))
    result = graft("adapters", "register", str(place), "--name", "x", "--task", "translation")
    assert result.exit_code == 0, result.output
    _, files = server.asked[0].form()
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"}


def test_register_refuses_an_archive_that_leaves_its_folder_or_is_cut(
    server: LittleServer, graft: Graft, tmp_path: Path
) -> None:
    place = tmp_path / "x.zip"
    with zipfile.ZipFile(place, "w") as writer:
        writer.writestr("../adapter_config.json", "{}")
    for content in (place.read_bytes(), place.read_bytes()[:20]):
        place.write_bytes(content)
        result = graft("adapters", "register", str(place), "--name", "x", "--task", "translation")
        assert result.exit_code == 5
        assert "no zip archive of an adapter folder" in result.stderr
    assert server.asked == []
    assert not (tmp_path / "adapter_config.json").exists()


def archive(**files: bytes) -> Answer:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as writer:
        for name, content in files.items():
            writer.writestr(name, content)
    return Answer(200, [packed.getvalue()], {"Content-Type": "application/zip"})


def test_export_writes_the_files(server: LittleServer, graft: Graft, tmp_path: Path) -> None:
    server.on("GET", "/api/adapters/x@2/archive", archive(**{"adapter_config.json": b"{}", "w.safetensors": b"w" * 9}))
    out = tmp_path / "out"
    assert graft("adapters", "export", "x@2", "-o", str(out)).exit_code == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        "adapter_config.json": b"{}",
        "w.safetensors": b"w" * 9,
    }
    refused = graft("adapters", "export", "x@2", "-o", str(out))
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert graft("adapters", "export", "x@2", "-o", str(out), "--force").exit_code == 0


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "c:evil"])
def test_export_writes_nothing_of_an_archive_that_leaves_the_folder(
    server: LittleServer, graft: Graft, tmp_path: Path, name: str
) -> None:
    server.on("GET", "/api/adapters/x/archive", archive(**{"good": b"g", name: b"e"}))
    result = graft("adapters", "export", "x", "-o", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "leaves the folder" in result.stderr
    assert list(tmp_path.rglob("*")) == []


def test_export_does_not_write_through_a_link(server: LittleServer, graft: Graft, tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.write_text("mine")
    (out / "a").symlink_to(outside)
    server.on("GET", "/api/adapters/x/archive", archive(a=b"theirs"))
    assert graft("adapters", "export", "x", "-o", str(out), "--force").exit_code == 0
    assert outside.read_text() == "mine"
    assert (out / "a").read_bytes() == b"theirs"


def test_export_of_a_broken_archive_writes_nothing(server: LittleServer, graft: Graft, tmp_path: Path) -> None:
    server.on("GET", "/api/adapters/x/archive", Answer(200, [b"PK no archive"]))
    assert graft("adapters", "export", "x", "-o", str(tmp_path / "out")).exit_code == 1
    assert not (tmp_path / "out").exists()


def test_query_prints_the_answer_and_nothing_else(server: LittleServer, graft: Graft) -> None:
    final = samples.answer("Hallo Welt")
    server.on("POST", "/api/predict", sse(samples.delta("Hallo"), samples.delta(" Welt"), samples.result(final)))
    result = graft("query", "de-strings", "Hello world", "--max-tokens", "9", "--stop", "a", "--stop", "b")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hallo Welt\n", "")
    assert server.asked[0].json() == {
        "adapter": "de-strings",
        "text": "Hello world",
        "sampling": {"max_tokens": 9, "stop": ["a", "b"]},
        "stream": True,
    }


def test_every_option_of_decoding_is_sent(server: LittleServer, graft: Graft) -> None:
    server.on("POST", "/api/predict", sse(samples.result(samples.answer("Hallo"))))
    options = "--max-tokens 9 --min-tokens 0 --temperature 0 --top-p 0.5 --top-k 0 --min-p 0.1 --seed -1"
    options += " --repetition-penalty 1.5 --presence-penalty -1 --frequency-penalty 0 --logit-bias 5=-100"
    options += " --logit-bias 7=1.5 --stop a --stop-token-id 3 --stop-token-id 4 --ignore-eos"
    result = graft("query", "de-strings", "Hello", *options.split())
    assert result.exit_code == 0, result.stderr
    assert server.asked[0].json()["sampling"] == {
        "max_tokens": 9,
        "min_tokens": 0,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 0,
        "min_p": 0.1,
        "seed": -1,
        "repetition_penalty": 1.5,
        "presence_penalty": -1,
        "frequency_penalty": 0,
        "logit_bias": {"5": -100, "7": 1.5},
        "stop": ["a"],
        "stop_token_ids": [3, 4],
        "ignore_eos": True,
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--logit-bias", "5"], "`5` is not ID=BIAS"),
        (["--logit-bias", "5=200"], "logit_bias.5"),
        (["--min-tokens", "9", "--max-tokens", "8"], "`min_tokens` is more than `max_tokens`"),
        (["--min-p", "2"], "--min-p"),
    ],
    ids=str,
)
def test_options_of_decoding_that_make_no_sense_are_told(graft: Graft, options: list[str], told: str) -> None:
    result = graft("query", "de-strings", "Hello", *options)
    assert result.exit_code == 2
    assert told in result.stderr


def test_query_prints_a_scored_answer_that_has_no_deltas(server: LittleServer, graft: Graft) -> None:
    server.on("POST", "/api/predict", sse(samples.result(samples.answer("1. Alien"))))
    assert graft("query", "films", "--input", '{"k": 1}').stdout == "1. Alien\n"
    assert server.asked[0].json()["input"] == {"k": 1}


@pytest.mark.parametrize(
    ("arguments", "piped", "body"),
    [
        (["x"], "Hello\n", {"adapter": "x", "text": "Hello"}),
        (["x", "-"], "Hello\n", {"adapter": "x", "text": "Hello"}),
        (["--task", "t", "Hello"], None, {"task": "t", "text": "Hello"}),
        (["--task", "t"], "Hello", {"task": "t", "text": "Hello"}),
        (["base", "Hello", "--task", "t"], None, {"adapter": "base", "task": "t", "text": "Hello"}),
        (["--task", "t", "--input", '{"a": 1}'], None, {"task": "t", "input": {"a": 1}}),
    ],
)
def test_query_takes_its_text_from_anywhere(
    server: LittleServer, graft: Graft, arguments: list[str], piped: str | None, body: dict[str, Any]
) -> None:
    server.on("POST", "/api/predict", document(samples.answer()))
    result = graft("query", *arguments, "--json", input=piped)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["text"] == "Hallo"
    assert server.asked[0].json() == body


def test_query_of_nothing_asks_nobody(server: LittleServer, graft: Graft) -> None:
    result = graft("query", "x", input="  \n")
    assert (result.exit_code, server.asked) == (2, [])


@pytest.mark.parametrize(
    "command",
    [
        ["query", "x", "caf\udce9"],
        ["query", "x\udce9", "Hello", "--json"],
        ["query", "x", "--input", '{"a": "\\ud83d"}'],
        ["query", "x", "Hello", "--stop", "\udce9"],
        ["adapters", "show", "x\udce9"],
        ["jobs", "cancel", "j\udce9"],
        ["datasets", "list", "--task", "t\udce9"],
        ["routes", "explain", "caf\udce9"],
        ["train", "t\udce9", "--data", ".", "--name", "x"],
    ],
    ids=lambda command: " ".join(command).encode("ascii", "backslashreplace").decode(),
)
def test_text_that_is_no_unicode_is_told(server: LittleServer, graft: Graft, command: list[str]) -> None:
    result = graft(*command)
    assert (result.exit_code, server.asked) == (2, [])
    assert "half of a surrogate pair" in result.stderr


def test_files_whose_names_are_no_unicode_are_told(server: LittleServer, graft: Graft, tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.jsonl").write_text("{}")
    result = graft("datasets", "check", str(tmp_path), "--task", "t")
    assert (result.exit_code, server.asked) == (2, [])
    assert "bytes that are not UTF-8" in result.stderr


@pytest.mark.parametrize("words", [["query", "base", "-", "--task", "t"], ["chat", "base"]])
def test_bytes_that_are_no_text_are_told(server: LittleServer, graft: Graft, words: list[str]) -> None:
    result = graft(*words, input=b"caf\xe9\n")
    assert (result.exit_code, server.asked) == (2, [])
    assert "stdin is not UTF-8" in result.stderr


def test_an_output_that_is_full_is_told(server: LittleServer) -> None:
    script_catalogue(server)
    with Path("/dev/full").open("wb") as full:
        process = graft_process(server, "tasks", "list", stdout=full, stderr=subprocess.PIPE)
        _, told = process.communicate(timeout=30)
    assert (process.returncode, told) == (1, b"Error: the output can't be written: No space left on device\n")


def test_query_that_is_cut_off_is_an_error(server: LittleServer, graft: Graft) -> None:
    server.on("POST", "/api/predict", sse(samples.delta("Hal")))
    result = graft("query", "x", "Hello")
    assert result.exit_code == 1
    assert result.stdout == "Hal\n"
    assert "before it was complete" in result.stderr


def test_evaluate_compares(server: LittleServer, graft: Graft, tmp_path: Path) -> None:
    script_catalogue(server)
    (tmp_path / "a.jsonl").write_text("{}")
    server.on("POST", "/api/datasets", document(samples.DATASET, 201))
    end = EvaluationEvent(done=6, total=6, adapter="de-strings@3", against="base", summary=samples.SUMMARY)
    server.on("POST", "/api/evaluations", ndjson(EvaluationEvent(done=3, total=6), end))
    command = ["evaluate", "de-strings", "--data", str(tmp_path), "--against", "base", "--limit", "3"]
    result = graft(*command)
    assert result.exit_code == 0, result.output
    assert server.asked[1].form()[0]["task"] == "translation"
    assert server.asked[-1].json() == {"adapter": "de-strings", "dataset": "ds-1", "against": "base", "limit": 3}
    assert result.stdout.splitlines()[0].split() == ["metric", "base", "de-strings@3", "change", "copy"]
    assert json.loads(graft(*command, "--json").stdout)["summary"]["adapter"]["primary"] == "chrf"
    server.on("POST", "/api/evaluations", ndjson(EvaluationEvent(done=3, total=6)))
    assert graft(*command).exit_code == 1


def chat_answers(server: LittleServer, *texts: str) -> None:
    replies = [sse(samples.delta(text), samples.result(samples.answer(text))) for text in texts]
    server.on("POST", "/api/predict", *replies)


def test_chat_remembers_until_it_is_reset(server: LittleServer, graft: Graft) -> None:
    server.on("GET", "/api/adapters/helper", document(samples.ADAPTER.model_copy(update={"task": "chat"})))
    chat_answers(server, "one", "two", "three")
    result = graft("chat", "helper", input="first\n\nsecond\n/reset\nthird\n/quit\nnever\n")
    assert (result.exit_code, result.stdout) == (0, "one\ntwo\nthree\n")
    asked = [asked.json()["input"]["messages"] for asked in server.asked[1:]]
    assert [[m["content"] for m in messages] for messages in asked] == [
        ["first"],
        ["first", "one", "second"],
        ["third"],
    ]


def test_chat_with_another_task_sends_each_line_alone(server: LittleServer, graft: Graft) -> None:
    server.on("GET", "/api/adapters/de-strings", document(samples.ADAPTER))
    chat_answers(server, "eins", "zwei")
    result = graft("chat", "de-strings", "--json", input="one\ntwo\n")
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["eins", "zwei"]
    assert [asked.json()["text"] for asked in server.asked[1:]] == ["one", "two"]


def test_chat_goes_on_after_a_refused_turn(server: LittleServer, graft: Graft) -> None:
    ok = sse(samples.delta("ok"), samples.result(samples.answer("ok")))
    server.on("POST", "/api/predict", problem(422, "the prompt is longer than the context"), ok)
    result = graft("chat", "base", input="long\nshort\n")
    assert result.stdout == "ok\n"
    assert result.stderr == "Error: the prompt is longer than the context\n"
    assert server.asked[1].json()["task"] == "chat"
    assert server.asked[1].json()["input"]["messages"] == [{"role": "user", "content": "short"}]


def test_chat_in_a_pipe_ends_with_the_code_of_the_first_line_that_failed(server: LittleServer, graft: Graft) -> None:
    ok = sse(samples.delta("ok"), samples.result(samples.answer("ok")))
    refused, gone = problem(422, "too long"), problem(404, "no such adapter")
    server.on("POST", "/api/predict", ok, refused, gone, ok)
    result = graft("chat", "base", "--json", input="one\ntwo\nthree\nfour\n/quit\n")
    assert result.exit_code == 5
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["ok", "ok"]
    errors = [json.loads(line)["error"] for line in result.stderr.splitlines()]
    assert [(error["detail"], error["exit_code"]) for error in errors] == [("too long", 5), ("no such adapter", 4)]


def test_chat_on_a_terminal_ends_well_after_a_refused_turn(server: LittleServer) -> None:
    server.on("POST", "/api/predict", problem(422, "too long"))
    code, shown = on_terminal(server, "chat", "base", typed=b"long\n/quit\n")
    assert (code, "Error: too long" in shown) == (0, True)


def test_chat_that_is_cut_off_is_an_error(server: LittleServer, graft: Graft) -> None:
    server.on("POST", "/api/predict", sse(samples.delta("Hal")))
    for words in ([], ["--json"]):
        result = graft("chat", "base", *words, input="Hello\n")
        assert result.exit_code == 1
        assert "before it was complete" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(graft: Graft, shell: str) -> None:
    result = graft("completion", shell)
    assert result.exit_code == 0
    assert "_GRAFT_COMPLETE" in result.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["st"], {"status"}),
        (["query", "de"], {"de-strings"}),
        (["query", "de-strings@"], {"de-strings@2", "de-strings@3"}),
        (["tasks", "show", ""], {"translation"}),
        (["jobs", "follow", "j"], {"job-1"}),
        (["datasets", "show", "zz"], set()),
        (["train", "translation", "--method", ""], {"lora"}),
    ],
)
def test_names_are_completed_by_asking_the_server(
    server: LittleServer, graft: Graft, words: list[str], found: set[str]
) -> None:
    script_catalogue(server)
    env = {"COMP_WORDS": " ".join(["graft", *words]), "COMP_CWORD": str(len(words)), "_GRAFT_COMPLETE": "bash_complete"}
    if not words[-1]:
        env["COMP_WORDS"] += " "
    result = graft(env=env)
    assert {line.partition(",")[2] for line in result.stdout.split()} == found


def test_completion_without_a_server_is_silent(graft: Graft) -> None:
    env = {"COMP_WORDS": "graft query d", "COMP_CWORD": "2", "_GRAFT_COMPLETE": "bash_complete"}
    result = graft(env={**env, "GRAFT_URL": "http://127.0.0.1:1"})
    assert (result.stdout.strip(), result.stderr) == ("", "")


def test_a_models_answer_does_not_command_the_terminal() -> None:
    from graft_client.cli.render import printable

    assert printable("a\x1b[2Jb\x07c\r\x9bd\ne\tf ü 🎬") == "a[2Jbcd\ne\tf ü 🎬"
