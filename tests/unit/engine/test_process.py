"""What the engine's own process sets up before it loads anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("own", [None, "/somewhere/else"])
def test_what_is_compiled_is_kept_in_the_configured_cache_folder(
    own: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graft_server.base_model import BaseModelError
    from graft_server.engine.messages import EngineConfig
    from graft_server.engine.process import start_engine

    # Both, so that whatever they were before the test is there after it.
    for name in ("GRAFT_CACHE", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    if own is not None:
        monkeypatch.setenv("TRITON_CACHE_DIR", own)
    with pytest.raises(BaseModelError, match="not a model folder"):
        start_engine(EngineConfig("torch", str(tmp_path), str(tmp_path / "cache")), None)  # type: ignore[arg-type]
    assert os.environ["GRAFT_CACHE"] == str(tmp_path / "cache")
    assert os.environ["TRITON_CACHE_DIR"] == (own or str(tmp_path / "cache" / "triton"))
