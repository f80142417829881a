"""Bounds hold from their side, and the table of figures says which are missed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.bounds import BOUNDS, at_least, at_most, summary, verdict
from support.tables import table

README = Path(__file__).parents[2] / "README.md"


def figure(name: str, value: float) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": "x", "numerator": None, "denominator": None, "samples": []}


def test_a_bound_holds_on_its_own_side_and_at_its_limit() -> None:
    assert [at_least(0.7).holds(value) for value in (0.69, 0.7, 0.71)] == [False, True, True]
    assert [at_most(1.3).holds(value) for value in (1.29, 1.3, 1.31)] == [True, True, False]


def test_the_table_tells_reached_from_missed() -> None:
    bounds = {"fast": at_least(2.0), "slow": at_most(1.0)}
    assert verdict(figure("fast", 2.5), bounds) == "reached"
    assert verdict(figure("slow", 2.5), bounds) == "MISSED"
    assert verdict(figure("free", 2.5), bounds) == ""
    console = Console(width=200, record=True)
    console.print(summary([figure("fast", 1.5), figure("slow", 0.5), figure("free", 3.0)], bounds))
    text = console.export_text()
    assert "at least 2.00" in text
    assert "at most 1.00" in text
    assert (text.count("reached"), text.count("MISSED")) == (1, 1)


def test_the_readme_has_the_bounds_in_force() -> None:
    told = {}
    for names, _, bounds in table(README, "Benchmarks"):
        if not bounds.strip(" |"):
            continue
        side, limits = re.fullmatch(r"(at least|at most) ([\d., ]+)", bounds.strip(" |")).groups()
        for name, limit in zip(re.findall(r"`(\w+)`", names), limits.split(", "), strict=True):
            told[name] = (side, float(limit))
    assert told == {name: (bound.side, bound.limit) for name, bound in BOUNDS.items()}
