"""Settings of ``graft serve``: which source wins, and how mistakes are told. Nothing is started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from unit.client.conftest import Graft

pytest.importorskip("pydantic_settings")

from graft_client.errors import UsageError
from graft_server.config import load_settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_command_line_beats_the_environment_beats_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("graft.toml").write_text('base_model = "file"\nport = 1\nmax_slots = 3\nlog_level = "debug"\n')
    monkeypatch.setenv("GRAFT_PORT", "2")
    monkeypatch.setenv("GRAFT_MAX_SLOTS", "4")
    settings = load_settings(None, {"max_slots": 5})
    assert (settings.base_model, settings.port, settings.max_slots, settings.log_level) == ("file", 2, 5, "debug")
    assert settings.host == "127.0.0.1"


def test_another_file_can_be_named() -> None:
    Path("graft.toml").write_text('base_model = "default"\n')
    Path("other.toml").write_text('base_model = "other"\n')
    assert load_settings(Path("other.toml"), {}).base_model == "other"


def test_the_cache_has_a_short_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_CACHE", "/somewhere")
    assert load_settings(None, {"base_model": "x"}).cache_dir == Path("/somewhere")
    assert load_settings(None, {"base_model": "x", "cache_dir": "/here"}).cache_dir == Path("/here")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('base_model = "x"\nmax_slot = 3', r"graft\.toml: `max_slot` is no setting; did you mean `max_slots`\?"),
        ('base_model = "x"\nport = "a"', r"graft\.toml: port: .*not 'a'"),
        ("base_model = ", r"graft\.toml: not TOML"),
        ("port = 1", "no `base_model`; give --base-model or GRAFT_BASE_MODEL"),
    ],
)
def test_mistakes_in_the_file_name_the_file_and_the_key(content: str, told: str) -> None:
    Path("graft.toml").write_text(content)
    with pytest.raises(UsageError, match=told):
        load_settings(None, {})


def test_mistakes_elsewhere_name_the_variable_or_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^--engine: .*not 'foo'"):
        load_settings(None, {"base_model": "x", "engine": "foo"})
    monkeypatch.setenv("GRAFT_PORT", "99999")
    with pytest.raises(UsageError, match=r"^GRAFT_PORT: .*not '99999'"):
        load_settings(None, {"base_model": "x"})


def test_serve_tells_a_mistake_as_a_usage_error(graft: Graft) -> None:
    result = graft("serve")
    assert result.exit_code == 2
    assert "no `base_model`" in result.stderr


def test_serve_without_the_servers_packages_says_what_to_install(graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic_settings", None)
    monkeypatch.delitem(sys.modules, "graft_server.config", raising=False)
    result = graft("serve", "--base-model", "x")
    assert result.exit_code == 1
    assert "pip install 'graftwork[server]'" in result.stderr
    assert "pydantic_settings is missing" in result.stderr
