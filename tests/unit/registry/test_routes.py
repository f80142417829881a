"""Routes in the registry: what they lead to, what is refused, and what they keep from being deleted."""

from __future__ import annotations

import dataclasses
import threading

import pytest
from pydantic import ValidationError

from graft_client.schemas.routes import RouteSpec
from graft_server.registry import ConflictError, InvalidNameError, Registry, UnknownError


def spec(*weights, **rest):
    """``spec(("de@1", 90), ("de@2", 10))``."""
    return RouteSpec.model_validate({"targets": [{"ref": ref, "weight": weight} for ref, weight in weights], **rest})


@pytest.fixture
def published(registry, make_folder, lineage):
    for number in range(1, 5):
        registry.publish("de", make_folder(str(number)), lineage)
    return registry


def test_a_route_leads_to_versions_and_aliases_become_versions(published):
    published.aliases.promote("de", "production", 2, seen=None, who="ada")
    made = published.routes.set(
        "go", spec(("de@1", 60), ("de@production", 40), shadow="de", fallback=["de@3", "base"]), who="ada", why="try"
    )
    assert (made.task, made.revision) == ("translation", 1)
    assert [(target.ref, target.weight) for target in made.spec.targets] == [("de@1", 60), ("de@2", 40)]
    assert (made.spec.shadow, made.spec.fallback) == ("de@4", ["de@3", "base"])
    assert set(made.versions) == {"de@1", "de@2", "de@3", "de@4"}
    assert published.routes.get("go") == published.target("go") == made
    assert [record.name for record in published.routes.all()] == ["go"]
    [event] = published.routes.history("go")
    assert (event.kind, event.who, event.why, event.spec) == ("set", "ada", "try", made.spec)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([("de@1", 90), ("de@2", 20)], r"90 \+ 20 = 110; they must add up to 100"),
        ([("de@1", 50)], "= 50"),
        ([], "at least 1"),
        ([("de@1", 150), ("de@2", -50)], "less than or equal to 100"),
        ([("de@1", float("nan")), ("de@2", 50)], "finite"),
    ],
)
def test_weights_that_do_not_add_up_are_refused(weights, told):
    with pytest.raises(ValidationError, match=told):
        spec(*weights)


def test_what_makes_no_route_is_refused(published, make_folder, lineage):
    published.publish("talk", make_folder("t"), dataclasses.replace(lineage, task="chat"))
    refused = [
        ("go", spec(("de@9", 100)), UnknownError, "no version 'de@9'"),
        ("go", spec(("fr", 100)), UnknownError, "no adapter 'fr'"),
        ("go", spec(("de@1", 50), ("talk", 50)), ConflictError, "'chat' and de@1 serves 'translation'"),
        ("go", spec(("de@4", 50), ("de", 50)), ConflictError, "de@4 is named twice"),
        ("go", spec(("base", 100)), ConflictError, "ask for `base`"),
        ("de", spec(("de@1", 100)), ConflictError, "'de' is an adapter"),
        ("auto", spec(("de@1", 100)), InvalidNameError, "auto"),
    ]
    for name, wanted, error, told in refused:
        with pytest.raises(error, match=told):
            published.routes.set(name, wanted, who="ada")
    with pytest.raises(ConflictError, match="its versions serve 'translation'"):
        published.routes.set("chat", spec(("de@1", 100)), who="ada", task="chat")
    assert published.routes.all() == []
    with pytest.raises(UnknownError, match="no route 'go'"):
        published.routes.get("go")


def test_an_adapter_can_not_take_a_routes_name(published, make_folder, lineage):
    published.routes.set("go", spec(("de@1", 100)), who="ada")
    with pytest.raises(ConflictError, match="'go' is a route"):
        published.publish("go", make_folder("x"), lineage)
    assert published.collect_garbage(dry_run=True) == []


def test_no_version_of_a_route_can_be_deleted(published):
    published.routes.set("go", spec(("de@1", 100), ("de@2", 0), shadow="de@3", fallback=["de@4"]), who="ada")
    for number in (1, 2, 3, 4):
        with pytest.raises(ConflictError, match=f"de@{number} is in route 'go'"):
            published.delete_version("de", number)
    with pytest.raises(ConflictError, match="is in route 'go'"):
        published.delete_adapter("de")
    assert set(published.routes.in_use().values()) == {"is in route go"}
    published.routes.set("go", spec(("de@1", 100)), who="ada")
    published.delete_version("de", 3)
    published.routes.delete("go", who="ada")
    published.delete_adapter("de")
    assert [event.kind for event in published.routes.history("go")] == ["delete", "set", "set"]


def test_who_saw_another_revision_changes_nothing(published):
    published.routes.set("go", spec(("de@1", 100)), who="ada", revision=0)
    with pytest.raises(ConflictError, match="was changed meanwhile"):
        published.routes.set("go", spec(("de@2", 100)), who="bo", revision=0)
    assert published.routes.set("go", spec(("de@3", 100)), who="bo", revision=1).revision == 2


def test_of_two_changes_at_once_one_wins(published, data_dir, database_url):
    other = Registry.open(data_dir, database_url)
    barrier, outcomes = threading.Barrier(2), []

    def change(registry, ref):
        barrier.wait()
        try:
            outcomes.append(registry.routes.set("go", spec((ref, 100)), who=ref, revision=0).spec.targets[0].ref)
        except ConflictError:
            outcomes.append(None)

    changers = [threading.Thread(target=change, args=each) for each in ((published, "de@1"), (other, "de@2"))]
    for changer in changers:
        changer.start()
    for changer in changers:
        changer.join()
    other.close()
    [winner] = [outcome for outcome in outcomes if outcome]
    assert published.routes.get("go").spec.targets[0].ref == winner
    assert len(published.routes.history("go")) == 1


def test_a_guard_moves_the_weight_to_the_heaviest_once(published):
    made = published.routes.set("go", spec(("de@1", 70), ("de@2", 20), ("de@3", 10)), who="ada")
    tripped = published.routes.trip("go", "de@2", revision=made.revision, why="12 % failed")
    assert [(target.ref, target.weight) for target in tripped.spec.targets] == [("de@1", 90), ("de@2", 0), ("de@3", 10)]
    assert tripped.revision == 2
    assert published.routes.trip("go", "de@2", revision=made.revision, why="again") is None
    assert published.routes.trip("gone", "de@2", revision=1, why="again") is None
    [event, _] = published.routes.history("go")
    assert (event.kind, event.who, event.why) == ("guard", "guard", "12 % failed")


def test_a_route_that_is_made_again_is_another_one(published):
    for _ in range(3):
        old = published.routes.set("go", spec(("de@1", 90), ("de@2", 10)), who="ada")
    published.routes.delete("go", who="ada")
    new = published.routes.set("go", spec(("de@1", 90), ("de@2", 10)), who="ada")
    assert new.revision > old.revision
    with pytest.raises(ConflictError):
        published.routes.set("go", spec(("de@3", 100)), who="bo", revision=1)
