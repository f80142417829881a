"""The compiled inner loop: how rows are sorted for it, and what happens where it can't be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graft_server.engine.native_lora import native_lora, sort_rows

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    native_lora.cache_clear()
    yield
    native_lora.cache_clear()


@given(st.lists(st.integers(-1, 7), max_size=100))
def test_each_row_with_an_adapter_is_in_one_block_of_its_slot(slots: list[int]) -> None:
    step = sort_rows(torch.tensor(slots, dtype=torch.long))
    placed = {}
    for slot, first, count in step.blocks.tolist():
        assert 1 <= count <= 8
        for row in step.rows[first : first + count].tolist():
            assert row not in placed
            placed[row] = slot
    assert placed == {row: slot for row, slot in enumerate(slots) if slot >= 0}


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert native_lora() is None
    assert "no C++ compiler is here" in caplog.text
    assert "install g++" in caplog.text


def test_a_compiler_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho 'out of paper' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))
    assert native_lora() is None
    assert str(broken) in caplog.text
    assert "out of paper" in caplog.text


def test_it_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))
    if native_lora() is None:
        pytest.skip("no C++ compiler is here")
    (library,) = (tmp_path / "native").iterdir()
    before = library.stat().st_mtime_ns
    native_lora.cache_clear()
    assert native_lora() is not None
    assert library.stat().st_mtime_ns == before
