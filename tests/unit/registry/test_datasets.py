"""Datasets: stored once, kept while they are needed."""

from __future__ import annotations

import pytest

from graft_client.schemas.jobs import JobState
from graft_server.registry import ConflictError, UnknownError


def add(registry, folder, task="translation"):
    return registry.add_dataset(task=task, format="jsonl", rows=3, bad_rows=1, folder=folder)


def test_the_same_files_for_the_same_task_are_one_dataset(registry, make_folder):
    stored = add(registry, make_folder("a"))
    assert add(registry, make_folder("a")) == stored
    assert add(registry, make_folder("b")).id != stored.id
    assert add(registry, make_folder("a"), task="chat").id != stored.id
    assert registry.dataset(stored.id) == stored
    assert (stored.path / "adapter_model.safetensors").read_text() == "a"
    assert [name for name, _, _ in stored.files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert registry.counts().datasets == 3


def test_datasets_are_listed_by_task_newest_first(registry, make_folder):
    first, second = add(registry, make_folder("a")), add(registry, make_folder("b"))
    other = add(registry, make_folder("a"), task="chat")
    assert registry.datasets() == [other, second, first]
    assert registry.datasets(task="translation") == [second, first]


def test_a_dataset_is_kept_while_a_job_needs_it(registry, dataset):
    job = registry.create_job(task="translation", adapter="x", dataset=dataset, method="lora", options={})
    with pytest.raises(ConflictError, match=job.id):
        registry.delete_dataset(dataset)
    registry.request_cancel(job.id)
    path = registry.dataset(dataset).path
    registry.delete_dataset(dataset)
    assert not path.exists()
    with pytest.raises(UnknownError):
        registry.dataset(dataset)
    with pytest.raises(UnknownError, match="dataset"):
        registry.resume_job(job.id)
    assert registry.job(job.id).state is JobState.cancelled


def test_the_order_of_the_files_is_kept_and_part_of_the_identity(registry, tmp_path):
    folder = tmp_path / "pair"
    folder.mkdir()
    (folder / "a.de").write_text("Hallo")
    (folder / "b.en").write_text("Hello")
    stored = [
        registry.add_dataset(task="translation", format="parallel-text", rows=1, bad_rows=0, folder=folder, order=order)
        for order in (["b.en", "a.de"], ["a.de", "b.en"])
    ]
    assert [[name for name, _, _ in one.files] for one in stored] == [["b.en", "a.de"], ["a.de", "b.en"]]
    assert stored[0].id != stored[1].id
    assert registry.dataset(stored[0].id) == stored[0]
