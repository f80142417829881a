"""``graft routes`` and ``graft query --auto --key``: what is sent and what is printed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graft_client.schemas.predict import AutoChoice
from graft_client.schemas.routes import Explanation, RouteEvent, RouteInfo, RouteSpec, ShadowRecord, TargetFigures
from unit.client import samples
from unit.client.conftest import Graft
from unit.client.little_server import Answer, LittleServer, document, problem, sse
from unit.client.test_cli import ANSI, on_terminal

SPEC = RouteSpec.model_validate(
    {
        "targets": [{"ref": "de@7", "weight": 90}, {"ref": "de@8", "weight": 10}],
        "shadow": "de@9",
        "fallback": ["base"],
        "guard": {"max_error_rate": 0.05, "metric": "confidence", "min_metric": 0.4},
    }
)
ROUTE = RouteInfo(
    name="go",
    task="translation",
    revision=4,
    spec=SPEC,
    updated_at=samples.NOW,
    live=[TargetFigures(ref="de@8", requests=12, error_rate=0.25, p95_seconds=1.5)],
)
EVENT = RouteEvent(route="go", seq=1, kind="guard", who="guard", why="de@8: failed", time=samples.NOW, spec=SPEC)


def sent(server: LittleServer) -> dict[str, Any]:
    return dict(json.loads(server.asked[-1].body))


def test_set_sends_weights_and_the_revision_that_it_saw(server: LittleServer, graft: Graft) -> None:
    server.on("GET", "/api/routes/go", document(ROUTE))
    server.on("POST", "/api/routes/go", document(ROUTE))
    command = ["routes", "set", "go", "de@7=90", "de@8=10", "--shadow", "de@9", "--fallback", "base", "-m", "try"]
    guard = ["--max-error-rate", "0.05", "--metric", "confidence", "--min-metric", "0.4"]
    done = graft(*command, *guard)
    assert done.exit_code == 0, done.output
    assert done.stdout == "go now leads to de@7=90, de@8=10\n"
    body = sent(server)
    assert (body["revision"], body["why"]) == (4, "try")
    assert RouteSpec.model_validate(body["spec"]) == SPEC


def test_a_new_route_with_one_target_gets_all(server: LittleServer, graft: Graft) -> None:
    server.on("GET", "/api/routes/go", problem(404, "no route 'go'"))
    server.on("POST", "/api/routes/go", document(ROUTE))
    assert graft("routes", "set", "go", "de@production").exit_code == 0
    body = sent(server)
    assert body["revision"] == 0
    assert body["spec"]["targets"] == [{"ref": "de@production", "weight": 100.0}]
    assert body["spec"].get("guard") is None


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (["de@7=90", "de@8=20"], "the weights are 90 + 20 = 110; they must add up to 100"),
        (["de@7", "de@8=20"], "`de@7` is not REF=PERCENT"),
        (["de@7=x"], "`de@7=x` is not REF=PERCENT"),
        (["de@7=100", "--metric", "confidence"], "go together"),
    ],
)
def test_weights_that_make_no_sense_are_2_and_nothing_is_sent(
    server: LittleServer, graft: Graft, targets: list[str], told: str
) -> None:
    done = graft("routes", "set", "go", *targets)
    assert done.exit_code == 2
    assert told in done.stderr
    assert server.asked == []


def test_list_show_shadow_and_delete(server: LittleServer, graft: Graft) -> None:
    server.on("GET", "/api/routes", document([ROUTE]))
    server.on("GET", "/api/routes/go", document(ROUTE))
    server.on("GET", "/api/routes/go/history", document([EVENT]))
    record = ShadowRecord(
        time=samples.NOW, adapter="de@7", shadow="de@9", text="Hallo", shadow_text="Hallo", seconds=1, shadow_seconds=2
    )
    broken = record.model_copy(update={"shadow_text": None, "error": "its weights are gone"})
    server.on("GET", "/api/routes/go/shadow", document([record, broken]))
    server.on("DELETE", "/api/routes/go", Answer(204))
    listed = graft("routes", "list").stdout
    for part in ("go", "de@7=90, de@8=10", "de@9", "base", "errors <= 0.05, confidence >= 0.4 in 300 s"):
        assert part in listed
    shown = graft("routes", "show", "go").stdout
    for part in ("revision  4", "25.0%", "1.5", "guard", "de@8: failed"):
        assert part in shown
    assert json.loads(graft("routes", "show", "go", "--json").stdout)["route"]["revision"] == 4
    shadowed = graft("routes", "shadow", "go").stdout
    assert "its weights are gone" in shadowed
    assert "1 of 1 the same; 1 failed" in shadowed
    assert graft("routes", "delete", "go").exit_code == 2
    assert graft("routes", "delete", "go", "--yes").stdout == "deleted go\n"


def test_explain_prints_each_step(server: LittleServer, graft: Graft) -> None:
    found = Explanation(adapter="de@7", task="translation", steps=["one", "two"], fallback=["base"], shadow="de@9")
    server.on("POST", "/api/explain", document(found))
    done = graft("routes", "explain", "Turn off", "--task", "translation", "--key", "ada")
    assert done.stdout == "1. one\n2. two\n   if it can't load: base\n   copied to: de@9\n"
    assert sent(server) == {"text": "Turn off", "task": "translation", "key": "ada"}


def test_a_terminal_is_told_how_sure_the_choice_was(server: LittleServer) -> None:
    choice = AutoChoice(adapter="de@7", confidence=0.31, runner_up="fr@1", runner_up_confidence=0.22)
    server.on("POST", "/api/predict", sse(samples.delta("Hallo"), samples.result(samples.answer(routing=choice))))
    _, shown = on_terminal(server, "query", "--auto", "Hello")
    assert "chosen by the text with confidence 0.31, runner-up fr@1 with 0.22" in ANSI.sub("", shown)


def test_query_by_the_text_alone_and_with_a_key(server: LittleServer, graft: Graft) -> None:
    server.on("POST", "/api/predict", document(samples.answer()))
    assert graft("query", "--auto", "Turn off", "--key", "ada", "--json").exit_code == 0
    body = sent(server)
    assert (body["adapter"], body["text"], body["key"]) == ("auto", "Turn off", "ada")
    refused = graft("query", "--auto", "de", "Turn off")
    assert refused.exit_code == 2
    assert "leave ADAPTER out" in refused.stderr
