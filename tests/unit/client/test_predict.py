"""``graft predict``: order, failures, and going on after being killed at any moment."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_client.cli.journal import Journal
from graft_client.schemas.common import Problem
from graft_client.schemas.predict import BulkLine
from unit.client import samples
from unit.client.conftest import Graft
from unit.client.little_server import Answer, Asked, LittleServer, document, ndjson, problem
from unit.client.test_cli import graft_process


def lines_for(items: list[dict[str, Any]]) -> list[BulkLine]:
    """Answers in the reverse order of the requests; a text of `bad` gets a problem."""
    found = []
    for index, item in reversed(list(enumerate(items))):
        text = item.get("text") or json.dumps(item.get("input"))
        if text == "bad":
            fault = Problem(title="t", status=422, detail="too long", code="c")
            found.append(BulkLine(index=index, problem=fault))
        else:
            answer = samples.answer(text.upper(), adapter=f"{item['adapter']}@1")
            found.append(BulkLine(index=index, result=answer))
    return found


def bulk(asked: Asked) -> Answer:
    return ndjson(*lines_for(asked.json()["items"]))


@pytest.fixture
def predicting(server: LittleServer) -> LittleServer:
    server.on("GET", "/api/adapters/x", document(samples.ADAPTER))
    server.on("POST", "/api/predict/bulk", bulk)
    return server


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def bulk_items(server: LittleServer) -> list[dict[str, Any]]:
    return [item for asked in server.asked if asked.path.endswith("/bulk") for item in asked.json()["items"]]


def test_answers_stand_in_the_order_of_the_requests(predicting: LittleServer, graft: Graft, tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "id": n} for n in range(200)]
    out = tmp_path / "out.jsonl"
    result = graft("predict", "x", str(write(tmp_path / "in.jsonl", *rows)), "-o", str(out), "--max-tokens", "4")
    assert result.exit_code == 0, result.output
    assert [(row["id"], row["text"]) for row in read(out)] == [(n, f"T{n}") for n in range(200)]
    assert read(out)[0]["usage"] == {"prompt_tokens": 12, "completion_tokens": 3}
    assert all(item["sampling"] == {"max_tokens": 4} for item in bulk_items(predicting))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_row_may_be_a_request_and_name_its_adapter(predicting: LittleServer, graft: Graft, tmp_path: Path) -> None:
    rows = [{"source": "Hello", "context": "c"}, {"text": "a", "adapter": "y"}, {"text": "a", "k": 1}]
    graft("predict", "x", str(write(tmp_path / "in.jsonl", *rows)), "-o", str(tmp_path / "out.jsonl"))
    assert bulk_items(predicting) == [
        {"adapter": "x", "input": {"source": "Hello", "context": "c"}},
        {"adapter": "y", "text": "a"},
        {"adapter": "x", "input": {"text": "a", "k": 1}},
    ]


def test_failed_rows_keep_their_place_and_are_tried_again(
    predicting: LittleServer, graft: Graft, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.jsonl", {"text": "a"}, {"text": "bad", "id": "b"}, {"text": "c"})
    out = tmp_path / "out.jsonl"
    first = graft("predict", "x", str(source), "-o", str(out))
    assert first.exit_code == 1
    assert "1 of them failed" in first.stdout
    assert "row 2: too long" in first.stderr
    assert read(out)[1]["id"] == "b"
    assert read(out)[1]["problem"]["detail"] == "too long"

    def all_good(asked: Asked) -> Answer:
        return ndjson(*(BulkLine(index=i, result=samples.answer("!")) for i, _ in enumerate(asked.json()["items"])))

    predicting.asked.clear()
    predicting.on("POST", "/api/predict/bulk", all_good)
    again = graft("predict", "x", str(source), "-o", str(out), "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout) == {"output": str(out), "rows": 3, "failed": []}
    assert [item["text"] for item in bulk_items(predicting)] == ["bad"]
    assert [row["text"] for row in read(out)] == ["A", "!", "C"]


def test_killed_in_the_middle_it_goes_on(predicting: LittleServer, graft: Graft, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *({"text": f"t{n}"} for n in range(100)))
    out, kept = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    blocked, release = threading.Event(), threading.Event()

    def some(asked: Asked) -> Answer:
        lines = lines_for(asked.json()["items"])

        def pieces() -> Any:
            for line in lines[:20]:
                yield line.model_dump_json().encode() + b"\n"
            blocked.set()
            release.wait(30)

        return Answer(200, pieces())

    predicting.on("POST", "/api/predict/bulk", some)
    process = graft_process(
        predicting, "predict", "x", str(source), "-o", str(out), "--concurrency", "1", stderr=subprocess.DEVNULL
    )
    assert blocked.wait(30)
    while len(kept.read_bytes().splitlines()) < 20:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    release.set()
    assert not out.exists()
    with kept.open("ab") as file:  # what a kill within a write leaves behind
        file.write(b'{"key": "abc", "row": {"te')

    predicting.asked.clear()
    predicting.on("POST", "/api/predict/bulk", bulk)
    result = graft("predict", "x", str(source), "-o", str(out))
    assert result.exit_code == 0, result.output
    assert "20 of 100 rows were done before" in result.stderr
    assert len(bulk_items(predicting)) == 80
    assert [row["text"] for row in read(out)] == [f"T{n}" for n in range(100)]
    assert not kept.exists()


def test_rows_that_were_edited_meanwhile_are_asked_again(
    predicting: LittleServer, graft: Graft, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.jsonl", {"text": "a"}, {"text": "bad"}, {"text": "c"})
    command = ["predict", "x", str(source), "-o", str(tmp_path / "out.jsonl")]
    assert graft(*command).exit_code == 1
    write(source, {"text": "a"}, {"text": "b"}, {"text": "d"})
    predicting.asked.clear()
    assert graft(*command).exit_code == 0
    assert sorted(item["text"] for item in bulk_items(predicting)) == ["b", "d"]
    assert [row["text"] for row in read(tmp_path / "out.jsonl")] == ["A", "B", "D"]


def test_a_finished_output_is_not_replaced_by_accident(predicting: LittleServer, graft: Graft, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"text": "a"})
    command = ["predict", "x", str(source), "-o", str(tmp_path / "out.jsonl")]
    assert graft(*command).exit_code == 0
    refused = graft(*command)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert graft(*command, "--force").exit_code == 0


def test_a_connection_that_breaks_costs_no_row(predicting: LittleServer, graft: Graft, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *({"text": f"t{n}"} for n in range(10)))

    def broken(asked: Asked) -> Answer:
        return ndjson(*lines_for(asked.json()["items"])[:4], breaks=True)

    predicting.on("POST", "/api/predict/bulk", broken, broken, bulk)
    result = graft("predict", "x", str(source), "-o", str(tmp_path / "out.jsonl"))
    assert result.exit_code == 0, result.output
    assert [len(asked.json()["items"]) for asked in predicting.asked[1:]] == [10, 6, 2]
    assert [row["text"] for row in read(tmp_path / "out.jsonl")] == [f"T{n}" for n in range(10)]


def test_a_row_that_met_a_full_queue_is_asked_again(predicting: LittleServer, graft: Graft, tmp_path: Path) -> None:
    full = BulkLine(index=1, problem=Problem(title="t", status=429, detail="full", code="c"))
    ok = BulkLine(index=0, result=samples.answer("A"))
    predicting.on("POST", "/api/predict/bulk", ndjson(full, ok), bulk)
    source = write(tmp_path / "in.jsonl", {"text": "a"}, {"text": "b"})
    assert graft("predict", "x", str(source), "-o", str(tmp_path / "out.jsonl")).exit_code == 0
    assert [row["text"] for row in read(tmp_path / "out.jsonl")] == ["A", "B"]


def test_a_server_that_refuses_ends_the_run_and_keeps_what_is_done(
    predicting: LittleServer, graft: Graft, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.jsonl", *({"text": f"t{n}"} for n in range(70)))
    out = tmp_path / "out.jsonl"
    predicting.on("POST", "/api/predict/bulk", bulk, problem(413, "too large"))
    result = graft("predict", "x", str(source), "-o", str(out), "--concurrency", "1")
    assert result.exit_code == 5
    assert "stopped with 64 of 70 rows done" in result.stderr
    assert not out.exists()
    predicting.on("POST", "/api/predict/bulk", bulk)
    assert graft("predict", "x", str(source), "-o", str(out)).exit_code == 0
    assert len(read(out)) == 70


def test_rows_left_unanswered_are_an_error(predicting: LittleServer, graft: Graft, tmp_path: Path) -> None:
    predicting.on("POST", "/api/predict/bulk", ndjson())
    source = write(tmp_path / "in.jsonl", {"text": "a"})
    result = graft("predict", "x", str(source), "-o", str(tmp_path / "out.jsonl"))
    assert result.exit_code == 1
    assert "left 1 of 1 requests unanswered" in result.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"text": "a"}\n{"text": \n', "in.jsonl:2: not JSON"),
        (b'{"text": "a"}\n\n[1]\n', "in.jsonl:3: not a JSON object"),
        (b'{"text": "\xff"}\n', "in.jsonl:1: not UTF-8"),
        (b'{"id": 1}\n', "in.jsonl:1: no request in this object"),
        (b'{"text": "a", "adapter": 3}\n', "in.jsonl:1: `adapter` must be a string"),
        (b'{"text": "a"}\n{"text": "\\ud83d"}\n', "in.jsonl:2: holds half of a surrogate pair"),
        (b'{"text": "a", "id": "\\ud83d"}\n', "in.jsonl:1: holds half of a surrogate pair"),
        (b'{"\\ud83d": "a"}\n', "in.jsonl:1: holds half of a surrogate pair"),
        (b"\n", "in.jsonl: no requests"),
    ],
)
def test_bad_lines_are_named_before_anything_is_asked(
    predicting: LittleServer, graft: Graft, tmp_path: Path, content: bytes, told: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    result = graft("predict", "x", str(source), "-o", str(tmp_path / "out.jsonl"))
    assert result.exit_code == 5
    assert told in result.stderr
    assert predicting.asked == []


def test_whole_surrogate_pairs_are_characters(predicting: LittleServer, graft: Graft, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"text": "😀", "id": "😀"})
    assert b"\\ud83d\\ude00" in source.read_bytes()
    assert graft("predict", "x", str(source), "-o", str(tmp_path / "out.jsonl")).exit_code == 0
    assert (read(tmp_path / "out.jsonl")[0]["id"], bulk_items(predicting)[0]["text"]) == ("😀", "😀")


def test_a_task_that_is_no_text_is_told(predicting: LittleServer, graft: Graft, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"text": "a"})
    result = graft("predict", "base", str(source), "-o", str(tmp_path / "out.jsonl"), "--task", "t\udcff")
    assert (result.exit_code, predicting.asked) == (5, [])
    assert "bytes that are not UTF-8" in result.stderr


@pytest.mark.parametrize("full", ["out.jsonl.partial", "out.jsonl"])
def test_a_full_disk_is_told_and_costs_no_row(
    predicting: LittleServer, graft: Graft, tmp_path: Path, full: str
) -> None:
    """A limit on the size of files stands for the disk. Failed rows are in the output alone, which then meets it."""
    bad = full == "out.jsonl"
    rows = [{"text": "bad" if bad and n > 4 else f"{n} {'t' * 200}", "id": f"{n} {'i' * 100}"} for n in range(60)]
    source = write(tmp_path / "in.jsonl", *rows)
    out = tmp_path / "out.jsonl"
    command = ("predict", "x", str(source), "-o", str(out), "--concurrency", "1")
    process = graft_process(
        predicting,
        *command,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
    )
    _, told = process.communicate(timeout=30)
    assert process.returncode == 1
    assert told.decode().splitlines()[-1] == f"Error: {tmp_path / full}: File too large"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl.partial"]
    kept = (tmp_path / "out.jsonl.partial").read_bytes().count(b"\n")
    assert kept == 5 if bad else 0 < kept < 60

    predicting.asked.clear()
    again = graft(*command)
    assert f"{kept} of 60 rows were done before" in again.stderr
    assert len(bulk_items(predicting)) == 60 - kept
    assert [row["id"] for row in read(out)] == [row["id"] for row in rows]


def test_an_unknown_adapter_is_told_once(server: LittleServer, graft: Graft, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"text": "a"})
    assert graft("predict", "nope", str(source), "-o", str(tmp_path / "out.jsonl")).exit_code == 4
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@given(
    keys=st.lists(st.text(max_size=3), max_size=8),
    cut=st.integers(min_value=0),
    more=st.lists(st.text(max_size=3), max_size=3),
)
def test_a_journal_cut_anywhere_holds_the_rows_before_the_cut(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], cut: int, more: list[str]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    ends = [0]
    with Journal(path) as journal:
        for number, key in enumerate(keys):
            journal.add(key, {"n": number, "text": "\u2028\n"})
            ends.append(path.stat().st_size)
    size = cut % (ends[-1] + 1)
    with path.open("r+b") as file:
        file.truncate(size)
    whole = sum(end <= size for end in ends) - 1
    expected = {key: number for number, key in enumerate(keys[:whole])}
    with Journal(path) as journal:
        assert {key: row["n"] for key, row in journal.rows.items()} == expected
        for key in more:
            journal.add(key, {"n": -1})
    with Journal(path) as journal:
        assert {key: row["n"] for key, row in journal.rows.items()} == expected | dict.fromkeys(more, -1)
