"""Metrics against values worked out by hand or given by their definitions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_plugins.metrics import bleu, chrf, exact_match, hit, mean, ndcg, reciprocal_rank, squad_normalise, token_f1


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Cat, sat.", "cat sat"),
        ("an apple a day", "apple day"),
        ("Theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("state-of-the-art", "stateoftheart"),
        ("  \n ", ""),
    ],
)
def test_squad_normalisation(text: str, normalised: str) -> None:
    assert squad_normalise(text) == normalised


def test_exact_match_takes_any_reference() -> None:
    assert exact_match("the Eiffel Tower!", ["Paris", "Eiffel tower"]) == 1
    assert exact_match("Eiffel", ["Eiffel tower"]) == 0


def test_token_f1_by_hand() -> None:
    # found {cat, sat}, wanted {cat, sat, on, mat}: precision 1, recall 1/2
    assert token_f1("the cat sat", ["The cat sat on the mat"]) == pytest.approx(2 / 3)
    # a repeated token counts as often as both have it: precision 1/2, recall 1
    assert token_f1("yes yes", ["yes"]) == pytest.approx(2 / 3)
    assert token_f1("no", ["yes", "no idea"]) == pytest.approx(2 / 3)
    assert token_f1("the", ["a"]) == 1
    assert token_f1("", ["yes"]) == 0


@given(st.text(), st.lists(st.text(), min_size=1, max_size=3))
def test_f1_is_at_least_exact_match_and_at_most_one(answer: str, references: list[str]) -> None:
    assert exact_match(answer, references) <= token_f1(answer, references) <= 1


@pytest.mark.parametrize(("rank", "gain"), [(1, 1.0), (2, 1 / math.log2(3)), (3, 0.5), (10, 1 / math.log2(11))])
def test_ndcg_by_hand(rank: int, gain: float) -> None:
    assert ndcg(rank, 10) == pytest.approx(gain)


def test_ranking_metrics_at_and_behind_the_cut() -> None:
    assert (hit(10, 10), hit(11, 10), hit(None, 10)) == (1, 0, 0)
    assert (ndcg(11, 10), ndcg(None, 10)) == (0, 0)
    assert (reciprocal_rank(4), reciprocal_rank(None)) == (0.25, 0)


def test_chrf_and_bleu_carry_signatures_and_take_several_references() -> None:
    best = chrf(["der Hund", "eine Katze"], [["ein Hund", "der Hund"], ["eine Katze"]])
    assert best.value == pytest.approx(100)
    assert best.signature is not None
    assert "nc:6" in best.signature
    assert bleu(["ganz andere Worte hier"], [["der Hund schläft nun"]]).value < 10
    characters = bleu(["猫が座る"], [["猫が座る"]], tokenize="char")
    assert characters.value == pytest.approx(100)
    assert characters.signature is not None
    assert "tok:char" in characters.signature


def test_no_rows_is_an_error_and_not_a_score() -> None:
    with pytest.raises(ValueError, match="no rows"):
        mean([])
    with pytest.raises(ValueError, match="no rows"):
        chrf([], [])
