"""Artefacts and datasets in a folder that several servers share."""

from __future__ import annotations

from pathlib import Path

import pytest

from graft_server.registry import Registry, RegistryError, UnknownError


@pytest.fixture
def pair(tmp_path, postgres):
    """Two registries with data folders of their own, one database and one folder of artefacts."""
    database, shared = postgres.new_database(), (tmp_path / "shared folder").as_uri()
    opened = [Registry.open(tmp_path / name, database, shared) for name in ("first", "second")]
    yield opened
    for registry in opened:
        registry.close()


def test_what_one_publishes_the_other_reads_in_place(pair, tmp_path, make_folder, lineage):
    first, second = pair
    published = first.publish("x", make_folder(), lineage)
    rows = first.add_dataset(task="translation", format="jsonl", rows=1, bad_rows=0, folder=make_folder("rows"))
    found = second.resolve("x")
    assert found == published
    assert found.path.is_relative_to(tmp_path / "shared folder")
    assert (found.path / "adapter_model.safetensors").read_text() == "weights"
    assert (second.dataset(rows.id).path / "adapter_model.safetensors").read_text() == "rows"
    second.verify(found)
    assert not (tmp_path / "first" / "artefacts").exists()


def test_neither_takes_the_files_of_the_other_for_garbage(pair, tmp_path, make_folder, lineage):
    first, second = pair
    published = first.publish("x", make_folder(), lineage)
    rows = second.add_dataset(task="translation", format="jsonl", rows=1, bad_rows=0, folder=make_folder("rows"))
    job = first.create_job(task="translation", adapter="x", dataset=rows.id, method="lora", options={})
    assert job.folder.is_relative_to(tmp_path / "first")
    assert first.collect_garbage() == second.collect_garbage() == []
    second.delete_version("x", 1)
    assert not published.path.exists()
    with pytest.raises(UnknownError):
        first.resolve("x")
    left = [tmp_path / "first" / "jobs" / "gone", tmp_path / "first" / "staging" / "gone"]
    left.append(tmp_path / "shared folder" / "datasets" / "gone")
    for folder in left:
        folder.mkdir()
    assert sorted(first.collect_garbage()) == sorted(left)
    assert not any(folder.exists() for folder in left)


@pytest.mark.parametrize("url", ["/srv/shared", "file://host/shared", "file:shared", "nothing://x"])
def test_what_is_no_url_of_a_store_is_refused(tmp_path, url):
    with pytest.raises(RegistryError, match="artefacts_url"):
        Registry.open(tmp_path / "data", artefacts_url=url)


def test_a_folder_that_is_none_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match=r"artefacts_url.*file"):
        Registry.open(tmp_path / "data", artefacts_url=(tmp_path / "file").as_uri())
