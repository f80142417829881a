"""Adapters and versions: what a caller gets back, and what is refused."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from graft_client.schemas.adapters import EvaluationSummary
from graft_client.schemas.common import MetricReport, MetricValue
from graft_server.registry import ConflictError, CorruptArtefactError, InvalidNameError, UnknownError


def test_a_published_version_keeps_its_files_and_its_lineage(registry, make_folder, lineage):
    report = MetricReport(primary="chrf", metrics={"chrf": MetricValue(value=31.5, signature="s")}, rows=50)
    full = dataclasses.replace(
        lineage,
        plugin="builtin",
        plugin_version="0.1.0",
        dataset="abc",
        seed=7,
        train_rows=400,
        train_seconds=12.5,
        train_tokens=9000,
        evaluation=EvaluationSummary(adapter=report, base=report, baselines={"random": report}),
    )

    published = registry.publish("de-strings", make_folder("w"), full)

    assert registry.resolve("de-strings@1") == published
    assert published.lineage == full
    assert published.ref == "de-strings@1"
    assert (published.path / "adapter_model.safetensors").read_text() == "w"
    assert published.size_bytes == len("w") + len('{"r": 8}')
    assert datetime.now(UTC) - published.created_at < timedelta(minutes=1)


def test_the_stored_files_do_not_follow_the_folder_they_came_from(registry, make_folder, lineage):
    folder = make_folder("w")
    published = registry.publish("x", folder, lineage)
    (folder / "adapter_model.safetensors").write_text("changed")
    assert (published.path / "adapter_model.safetensors").read_text() == "w"


def test_a_name_stands_for_its_latest_version(registry, make_folder, lineage):
    first = registry.publish("x", make_folder("1"), lineage)
    second = registry.publish("x", make_folder("2"), lineage)
    assert registry.resolve("x") == second
    assert registry.resolve("x@1") == first
    assert registry.adapter("x").latest == second
    assert [version.version for version in registry.adapter("x").versions] == [1, 2]


def test_the_latest_of_a_task_is_the_one_published_last(registry, make_folder, lineage):
    registry.publish("b", make_folder("1"), lineage)
    registry.publish("a", make_folder("2"), lineage)
    newest = registry.publish("b", make_folder("3"), lineage)
    registry.publish("qa", make_folder("4"), dataclasses.replace(lineage, task="domain-qa"))
    assert registry.latest_for_task("translation") == newest
    assert registry.latest_for_task("chat") is None
    assert [adapter.name for adapter in registry.adapters(task="translation")] == ["a", "b"]


def test_numbers_and_engine_ids_do_not_come_back_after_a_delete(registry, make_folder, lineage):
    first = registry.publish("x", make_folder("1"), lineage)
    registry.publish("x", make_folder("2"), lineage)
    registry.delete_version("x", 2)
    third = registry.publish("x", make_folder("2"), lineage)
    registry.delete_adapter("x")
    fourth = registry.publish("x", make_folder("1"), lineage)
    assert (third.version, fourth.version) == (3, 4)
    assert first.engine_id < third.engine_id < fourth.engine_id
    with pytest.raises(UnknownError, match="x@1"):
        registry.resolve("x@1")


def test_files_stay_until_the_last_version_that_shares_them_goes(registry, make_folder, lineage):
    one = registry.publish("one", make_folder("same"), lineage)
    two = registry.publish("two", make_folder("same"), lineage)
    assert one.path == two.path
    registry.delete_adapter("one")
    registry.verify(two)
    registry.delete_version("two", 1)
    assert not two.path.exists()
    assert not two.path.parent.exists()


def test_an_adapter_goes_with_its_last_version(registry, make_folder, lineage):
    registry.publish("x", make_folder(), lineage)
    registry.delete_version("x", 1)
    assert registry.adapters() == []
    with pytest.raises(UnknownError):
        registry.adapter("x")


def test_changed_files_are_found_out(registry, make_folder, lineage):
    published = registry.publish("x", make_folder("w"), lineage)
    registry.verify(published)
    (published.path / "adapter_model.safetensors").write_text("v")
    with pytest.raises(CorruptArtefactError, match="not those that were stored"):
        registry.verify(published)


@pytest.mark.parametrize("name", ["base", "auto", "", "Upper", "a@1", "a/b", "-a", ".a", "a" * 65, "ä", "a\n"])
def test_names_that_would_mean_something_else_are_refused(registry, make_folder, lineage, name):
    with pytest.raises(InvalidNameError):
        registry.publish(name, make_folder(), lineage)
    assert registry.counts().versions == 0


@pytest.mark.parametrize("name", ["a", "de-strings", "v1.2_x", "9", "a" * 64])
def test_ordinary_names_are_taken(registry, make_folder, lineage, name):
    assert registry.publish(name, make_folder(), lineage).adapter == name


def test_an_unknown_name_comes_with_the_nearest(registry, make_folder, lineage):
    registry.publish("de-strings", make_folder(), lineage)
    with pytest.raises(UnknownError, match="did you mean 'de-strings'") as caught:
        registry.resolve("de-string")
    assert (caught.value.kind, caught.value.nearest) == ("adapter", "de-strings")
    with pytest.raises(UnknownError) as caught:
        registry.resolve("de-strings@9")
    assert (caught.value.kind, caught.value.nearest) == ("version", "de-strings@1")
    with pytest.raises(UnknownError):
        registry.resolve("de-strings@newest")
    assert registry.resolve("de-strings@latest").ref == "de-strings@1"


def test_an_adapter_belongs_to_one_task(registry, make_folder, lineage):
    registry.publish("x", make_folder("1"), lineage)
    with pytest.raises(ConflictError, match="'translation', not to 'chat'"):
        registry.publish("x", make_folder("2"), dataclasses.replace(lineage, task="chat"))
    assert registry.collect_garbage(dry_run=True) == []


def test_settings_are_kept(registry, data_dir, database_url):
    assert registry.get_setting("base") is None
    registry.set_setting("base", "1")
    registry.set_setting("base", "2")
    reopened = type(registry).open(data_dir, database_url)
    assert reopened.get_setting("base") == "2"
    reopened.close()


def test_pins_are_kept_until_they_are_taken_off(registry, data_dir, database_url, make_folder, lineage):
    first, second, other = (registry.publish(name, make_folder(name), lineage) for name in ("x", "x", "a"))
    assert not first.pinned
    assert registry.pin("a", 1) == dataclasses.replace(other, pinned=True)
    assert (
        registry.pin("x", 2)
        == registry.pin("x", 2)
        == registry.resolve("x")
        == dataclasses.replace(second, pinned=True)
    )
    reopened = type(registry).open(data_dir, database_url)
    assert [version.ref for version in reopened.pinned_versions()] == ["x@2", "a@1"]
    assert [version.pinned for version in reopened.adapter("x").versions] == [False, True]
    reopened.close()
    assert registry.unpin("x", 2) == registry.unpin("x", 2) == second
    assert [version.ref for version in registry.pinned_versions()] == ["a@1"]


def test_a_deleted_version_is_pinned_no_more(registry, make_folder, lineage):
    for name in ("x", "y"):
        registry.publish(name, make_folder(name), lineage)
        registry.pin(name, 1)
    registry.delete_version("x", 1)
    registry.delete_adapter("y")
    assert registry.pinned_versions() == []
    for change in (registry.pin, registry.unpin):
        with pytest.raises(UnknownError, match="x"):
            change("x", 1)
    registry.publish("x", make_folder("x"), lineage)
    assert registry.pinned_versions() == []


def test_the_versions_that_say_what_they_are_for_are_found(registry, make_folder, lineage, dataset):
    silent = registry.publish("silent", make_folder("1"), lineage)
    trained = registry.publish("trained", make_folder("2"), replace(lineage, dataset=dataset))
    folder = make_folder("3")
    (folder / "profile.safetensors").write_text("profile")
    described = registry.publish("described", folder, lineage)
    assert registry.described_after(0, "profile.safetensors") == [trained, described]
    assert registry.described_after(trained.engine_id, "profile.safetensors") == [described]
    assert described.files == ("adapter_config.json", "adapter_model.safetensors", "profile.safetensors")
    assert silent.files == described.files[:2]
