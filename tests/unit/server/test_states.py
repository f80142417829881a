"""What tasks keep with adapters is read once, and kept by its size."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import BaseModel

from graft_plugins.tasks.translation import TranslationState, TranslationTask
from graft_server.registry.records import Lineage, VersionRecord
from graft_server.routing.states import STATE_FILE, StateCache


@pytest.fixture
def task() -> TranslationTask:
    return TranslationTask()


def version(tmp_path: Path, number: int, language: str = "German") -> VersionRecord:
    folder = tmp_path / str(number)
    folder.mkdir()
    (folder / STATE_FILE).write_text(TranslationState(target_language=language).model_dump_json(), encoding="utf-8")
    lineage = Lineage(task="translation", method="lora", base_model="x", base_fingerprint="f")
    return VersionRecord("x", number, number, "d", folder, 0, datetime.now(UTC), lineage)


def language(state: BaseModel) -> str:
    assert isinstance(state, TranslationState)
    return state.target_language


def rewrite(record: VersionRecord) -> None:
    """Shows who reads a file again; a version's files never change otherwise."""
    (record.path / STATE_FILE).write_text('{"target_language": "again"}', encoding="utf-8")


def test_a_state_is_read_once(tmp_path: Path, task: TranslationTask) -> None:
    cache, record = StateCache(), version(tmp_path, 1)
    assert language(cache.get(record, task)) == "German"
    rewrite(record)
    assert language(cache.get(record, task)) == "German"


def test_beyond_the_budget_the_least_recently_used_states_leave(tmp_path: Path, task: TranslationTask) -> None:
    cache = StateCache(budget=2048)
    first, second, third = (version(tmp_path, number) for number in (1, 2, 3))
    for record in (first, second, first, third):
        cache.get(record, task)
    for record in (first, second, third):
        rewrite(record)
    assert [language(cache.get(record, task)) for record in (third, first)] == ["German", "German"]
    assert language(cache.get(second, task)) == "again"


def test_one_state_is_kept_however_large_it_is(tmp_path: Path, task: TranslationTask) -> None:
    cache = StateCache(budget=2048)
    large, small = version(tmp_path, 1, "x" * 5000), version(tmp_path, 2)
    cache.get(large, task)
    rewrite(large)
    assert language(cache.get(large, task)) == "x" * 5000
    cache.get(small, task)
    assert language(cache.get(large, task)) == "again"


def test_without_a_file_the_state_is_the_tasks_empty_one(tmp_path: Path, task: TranslationTask) -> None:
    record = version(tmp_path, 1)
    (record.path / STATE_FILE).unlink()
    assert language(StateCache().get(record, task)) == ""
