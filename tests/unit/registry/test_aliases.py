"""Aliases: what they stand for, who moves them, the way back, and what they keep from being deleted."""

from __future__ import annotations

import threading

import pytest

from graft_client.schemas.lifecycle import GateReport
from graft_server.registry import ConflictError, InvalidNameError, Registry, UnknownError


@pytest.fixture
def published(registry, make_folder, lineage):
    for number in range(1, 5):
        registry.publish("de", make_folder(str(number)), lineage)
    return registry


def promote(registry, number, alias="production", **options):
    seen = registry.aliases.get("de", alias)
    return registry.aliases.promote("de", alias, number, seen=seen, who="ada", **options)


def test_an_alias_stands_for_what_was_promoted(published):
    event = promote(published, 2, why="it is better")
    assert (event.kind, event.version, event.previous, event.who, event.why) == (
        "promote",
        2,
        None,
        "ada",
        "it is better",
    )
    assert published.resolve("de@production").ref == "de@2"
    assert published.resolve("de").ref == published.resolve("de@latest").ref == "de@4"
    promote(published, 3)
    promote(published, 4, "staging")
    assert published.resolve("de@production").ref == "de@3"
    assert published.adapter("de").aliases == {"production": 3, "staging": 4}
    assert [record.aliases for record in published.adapters()] == [{"production": 3, "staging": 4}]


def test_an_unknown_alias_comes_with_the_nearest(published):
    promote(published, 1)
    with pytest.raises(UnknownError) as caught:
        published.resolve("de@prodution")
    assert (caught.value.kind, caught.value.nearest) == ("version", "de@production")


@pytest.mark.parametrize("alias", ["latest", "", "7", "A", "a b", "a@b", "a" * 65])
def test_names_that_would_mean_something_else_are_refused(published, alias):
    with pytest.raises(InvalidNameError):
        published.aliases.promote("de", alias, 1, seen=None, who="ada")
    assert published.adapter("de").aliases == {}


def test_what_does_not_exist_can_not_be_promoted(published):
    with pytest.raises(UnknownError, match="no version 'de@9'"):
        promote(published, 9)
    with pytest.raises(UnknownError, match="no adapter 'fr'"):
        published.aliases.get("fr", "production")
    assert published.aliases.history("de") == []


def test_a_promote_of_what_is_in_place_is_refused(published):
    promote(published, 2)
    with pytest.raises(ConflictError, match="stands for de@2 already"):
        promote(published, 2)
    assert len(published.aliases.history("de")) == 1


@pytest.mark.parametrize("first", [True, False])
def test_of_two_promotes_at_once_one_wins_and_the_other_is_told(published, data_dir, database_url, first):
    if not first:
        promote(published, 1)
    seen = published.aliases.get("de", "production")
    other = Registry.open(data_dir, database_url)
    barrier, outcomes = threading.Barrier(2), []

    def move(registry, number, who):
        barrier.wait()
        try:
            registry.aliases.promote("de", "production", number, seen=seen, who=who)
            outcomes.append((number, None))
        except ConflictError as error:
            outcomes.append((number, str(error)))

    movers = [threading.Thread(target=move, args=arguments) for arguments in ((published, 2, "ada"), (other, 3, "bo"))]
    for mover in movers:
        mover.start()
    for mover in movers:
        mover.join()
    other.close()
    [winner] = [number for number, told in outcomes if told is None]
    [told] = [told for _, told in outcomes if told is not None]
    assert published.resolve("de@production").version == winner
    assert f"was moved to de@{winner} by {'ada' if winner == 2 else 'bo'} meanwhile" in told
    assert published.aliases.history("de")[0].version == winner
    assert len(published.aliases.history("de")) == 1 + (not first)


def test_rollback_goes_back_and_further_back(published):
    for number in (1, 2, 3):
        promote(published, number)
    back = published.aliases.rollback("de", "production", who="bo", why="bad")
    assert (back.kind, back.version, back.previous, back.who) == ("rollback", 2, 3, "bo")
    promote(published, 4)
    assert published.aliases.rollback("de", "production", who="bo").version == 2
    assert published.aliases.rollback("de", "production", who="bo").version == 1
    with pytest.raises(ConflictError, match="before de@1 is left"):
        published.aliases.rollback("de", "production", who="bo")
    assert published.resolve("de@production").ref == "de@1"
    kinds = [(event.kind, event.version) for event in reversed(published.aliases.history("de"))]
    assert kinds == [
        ("promote", 1),
        ("promote", 2),
        ("promote", 3),
        ("rollback", 2),
        ("promote", 4),
        ("rollback", 2),
        ("rollback", 1),
    ]


def test_rollback_passes_over_what_was_deleted(published):
    for number in (1, 2, 3):
        promote(published, number)
    published.delete_version("de", 2)
    assert published.aliases.rollback("de", "production", who="bo").version == 1


def test_nothing_to_go_back_from(published):
    with pytest.raises(ConflictError, match="stands for no version"):
        published.aliases.rollback("de", "production", who="bo")
    with pytest.raises(ConflictError, match="stands for no version"):
        published.aliases.remove("de", "production", who="bo")


def test_what_an_alias_stands_for_can_not_be_deleted(published):
    promote(published, 2)
    with pytest.raises(ConflictError, match="de@2 is what de@production stands for"):
        published.delete_version("de", 2)
    with pytest.raises(ConflictError, match="de@production"):
        published.delete_adapter("de")
    published.verify(published.resolve("de@production"))
    published.aliases.remove("de", "production", who="ada")
    published.delete_version("de", 2)
    published.delete_adapter("de")
    assert published.collect_garbage(dry_run=True) == []


def test_the_history_outlives_the_adapter_and_its_numbers(published, make_folder, lineage):
    promote(published, 2)
    published.aliases.remove("de", "production", who="ada", why="retired")
    published.delete_adapter("de")
    published.publish("de", make_folder("new"), lineage)
    promote(published, 5)
    assert [(event.seq, event.kind, event.version) for event in published.aliases.history("de")] == [
        (3, "promote", 5),
        (2, "remove", None),
        (1, "promote", 2),
    ]
    with pytest.raises(ConflictError, match="before de@5 is left"):
        published.aliases.rollback("de", "production", who="ada")
    with pytest.raises(UnknownError):
        published.aliases.history("never")


def test_a_refusal_is_kept_and_moves_nothing(published):
    promote(published, 1)
    gate = GateReport(
        dataset="d", rows=3, metric="chrf", against="de@1", score=20.0, score_in_place=30.0, min_delta=0.0
    )
    seen = published.aliases.get("de", "production")
    published.aliases.refuse("de", "production", 2, seen=seen, who="ada", why="", gate=gate)
    assert published.resolve("de@production").ref == "de@1"
    [refused, _] = published.aliases.history("de", "production")
    assert (refused.kind, refused.version, refused.gate) == ("refused", 2, gate)
    assert published.aliases.history("de", "staging") == []


@pytest.mark.parametrize(
    ("higher", "score", "in_place", "least", "passed"),
    [
        (True, 30.5, 30.0, 0.0, True),
        (True, 30.0, 30.0, 0.0, True),
        (True, 29.9, 30.0, 0.0, False),
        (True, 30.5, 30.0, 1.0, False),
        (True, 29.9, 30.0, -1.0, True),
        (False, 1.0, 2.0, 0.5, True),
        (False, 2.0, 1.0, 0.0, False),
    ],
)
def test_a_gate_passes_what_is_better_by_the_least_difference(higher, score, in_place, least, passed):
    gate = GateReport(
        dataset="d",
        rows=3,
        metric="m",
        higher_is_better=higher,
        against="base",
        score=score,
        score_in_place=in_place,
        min_delta=least,
    )
    assert gate.passed is passed


def test_what_must_stay_is_what_is_in_place_and_the_way_back(published):
    for number in (1, 2, 3):
        promote(published, number)
    ids = {version.engine_id: version.version for version in published.adapter("de").versions}
    kept = {ids[engine_id]: reason for engine_id, reason in published.aliases.in_use().items()}
    assert kept == {3: "is de@production", 2: "what a rollback of de@production goes to"}
