"""The compiled functions: what happens where they can't be compiled, and that it is done once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from graft_server.engine.native.library import native_library

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    native_library.cache_clear()
    yield
    native_library.cache_clear()


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert native_library() is None
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
    assert native_library() is None
    assert str(broken) in caplog.text
    assert "out of paper" in caplog.text


def test_it_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))
    if native_library() is None:
        pytest.skip("no C++ compiler is here")
    (library,) = (tmp_path / "native").iterdir()
    before = library.stat().st_mtime_ns
    native_library.cache_clear()
    assert native_library() is not None
    assert library.stat().st_mtime_ns == before
