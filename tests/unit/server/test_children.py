"""How long OpenMP threads of the engine and of what computes beside it wait actively."""

from __future__ import annotations

import pytest

from graft_server.children import background_environment, engine_environment


def test_what_computes_beside_an_engine_gives_its_cores_away_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("FROM_THE_OPERATOR", "kept")
    engine, background = engine_environment(), background_environment()
    assert 0 < int(background["GOMP_SPINCOUNT"]) < int(engine["GOMP_SPINCOUNT"])
    assert engine["FROM_THE_OPERATOR"] == background["FROM_THE_OPERATOR"] == "kept"


def test_the_operators_own_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert engine_environment()["GOMP_SPINCOUNT"] == background_environment()["GOMP_SPINCOUNT"] == "7"
