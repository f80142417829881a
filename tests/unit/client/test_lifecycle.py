"""``graft adapters promote``, ``rollback``, ``history``, ``unalias`` and ``gc``: what is sent and what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graft_client.schemas.common import Problem
from graft_client.schemas.lifecycle import AliasEvent, GateEvent, GateReport, GcReport, GcVersion
from unit.client import samples
from unit.client.conftest import Graft
from unit.client.little_server import LittleServer, document, ndjson, problem

ALIAS = "/api/adapters/de-strings/aliases/production"
GATE = GateReport(
    dataset="ds-1", rows=3, metric="chrf", against="de-strings@2", score=30.5, score_in_place=29.0, min_delta=0.5
)


def event(**fields: Any) -> AliasEvent:
    given = {"kind": "promote", "version": 3, "previous": 2, "why": "more rows", **fields}
    return AliasEvent(adapter="de-strings", seq=4, alias="production", who="operator", time=samples.NOW, **given)


@pytest.fixture(autouse=True)
def _adapter(server: LittleServer) -> None:
    adapter = samples.ADAPTER.model_copy(update={"aliases": {"production": 2}})
    server.on("GET", "/api/adapters/de-strings", document(adapter))
    server.on("GET", "/api/adapters/de-strings/versions/3", document(samples.version()))
    server.on("GET", "/api/adapters/de-strings/versions/staging", document(samples.version()))


@pytest.mark.parametrize("ref", ["de-strings", "de-strings@3", "de-strings@staging"])
def test_a_promote_says_what_was_in_place(server: LittleServer, graft: Graft, ref: str) -> None:
    server.on("POST", ALIAS, document(event()))
    done = graft("adapters", "promote", ref, "production", "-m", "more rows")
    assert done.exit_code == 0, done.output
    assert json.loads(server.asked[-1].body) == {"version": 3, "why": "more rows", "in_place": 2}
    assert done.stdout == "de-strings@production now is de-strings@3 (before: @2)\n"


def test_a_gate_uploads_measures_and_promotes(server: LittleServer, graft: Graft, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"source": "a", "target": "b"}\n')
    server.on("POST", "/api/datasets", document(samples.DATASET))
    server.on(
        "POST",
        f"{ALIAS}/gate",
        ndjson(GateEvent(done=3, total=6), GateEvent(done=6, total=6, event=event(gate=GATE))),
    )
    done = graft("adapters", "promote", "de-strings@3", "--gate", str(rows), "--min-delta", "0.5", "--limit", "9")
    assert done.exit_code == 0, done.output
    sent = json.loads(server.asked[-1].body)
    assert (sent["dataset"], sent["min_delta"], sent["limit"], sent["in_place"]) == ("ds-1", 0.5, 9, 2)
    assert "chrf 30.5, 29 of de-strings@2" in done.stdout


def test_a_gate_that_refuses_is_5(server: LittleServer, graft: Graft, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"source": "a", "target": "b"}\n')
    server.on("POST", "/api/datasets", document(samples.DATASET))
    refusal = Problem(title="x", status=409, code="gate-refused", detail="de-strings@3 has chrf 20 and de-strings@2 29")
    server.on("POST", f"{ALIAS}/gate", ndjson(GateEvent(done=6, total=6, problem=refusal)))
    done = graft("adapters", "promote", "de-strings@3", "--gate", str(rows))
    assert done.exit_code == 5
    assert "de-strings@3 has chrf 20 and de-strings@2 29" in done.stderr


def test_who_was_too_late_is_told(server: LittleServer, graft: Graft) -> None:
    server.on("POST", ALIAS, problem(409, "de-strings@production stands for de-strings@1 by now"))
    done = graft("adapters", "promote", "de-strings@3")
    assert done.exit_code == 5
    assert "by now" in done.stderr


def test_rollback_and_unalias(server: LittleServer, graft: Graft) -> None:
    server.on("POST", f"{ALIAS}/rollback", document(event(kind="rollback", version=2, previous=3)))
    back = graft("adapters", "rollback", "de-strings", "-m", "bad")
    assert back.stdout == "de-strings@production now is de-strings@2 (before: @3)\n"
    assert json.loads(server.asked[-1].body) == {"why": "bad"}
    assert graft("adapters", "rollback", "de-strings@3").exit_code == 2
    server.on("DELETE", ALIAS, document(event(kind="remove", version=None)))
    assert graft("adapters", "unalias", "de-strings", "production").exit_code == 2
    gone = graft("adapters", "unalias", "de-strings", "production", "--yes")
    assert gone.stdout == "de-strings@production now stands for nothing (before: @2)\n"


def test_history_says_who_when_and_why(server: LittleServer, graft: Graft) -> None:
    server.on("GET", "/api/adapters/de-strings/history", document([event(gate=GATE), event(kind="refused")]))
    done = graft("adapters", "history", "de-strings")
    for part in ("promote", "refused", "@3", "@2", "operator", "more rows", "chrf 30.5, 29 of de-strings@2"):
        assert part in done.stdout
    assert json.loads(graft("adapters", "history", "de-strings", "--json").stdout)[0]["gate"]["score"] == 30.5


def report(*, dry_run: bool) -> GcReport:
    old = GcVersion(ref="de-strings@1", size_bytes=2048, created_at=samples.NOW)
    kept = old.model_copy(update={"ref": "de-strings@2", "kept_because": "is de-strings@production"})
    return GcReport(dry_run=dry_run, deleted=[old], kept=[kept], freed_bytes=2048, orphans=1)


def test_gc_shows_first_and_deletes_when_told(server: LittleServer, graft: Graft) -> None:
    server.on("POST", "/api/gc", document(report(dry_run=True)), document(report(dry_run=False)))
    asked_first = graft("adapters", "gc", "--keep", "2")
    assert asked_first.exit_code == 2
    assert "de-strings@1  would be deleted" in asked_first.stdout
    assert "--yes" in asked_first.stderr
    assert [json.loads(asked.body)["dry_run"] for asked in server.asked] == [True]


def test_gc_with_yes(server: LittleServer, graft: Graft) -> None:
    server.on("POST", "/api/gc", document(report(dry_run=True)), document(report(dry_run=False)))
    done = graft("adapters", "gc", "--older-than", "30", "--yes")
    assert done.exit_code == 0, done.output
    sent = [json.loads(asked.body) for asked in server.asked]
    assert [(each["dry_run"], each["older_than_days"]) for each in sent] == [(True, 30.0), (False, 30.0)]
    assert "1 version(s) deleted, 2.0 KiB" in done.stdout


def test_gc_dry_run_changes_nothing(server: LittleServer, graft: Graft) -> None:
    server.on("POST", "/api/gc", document(report(dry_run=True)))
    done = graft("adapters", "gc", "--dry-run")
    assert "is de-strings@production" in done.stdout
    assert "1 folders" in done.stdout
    assert len(server.asked) == 1
