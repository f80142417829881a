"""The plugin README is true: its example works, and every hook, task and format stands in it."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from graft_plugins import hookspecs
from graft_plugins.dataset import formats_for
from graft_plugins.manager import PluginHost

README = (Path(__file__).parents[3] / "plugins" / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found is not None, f"the README has no {language} block"
    return found.group(1)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "graft_intent.py").write_text(block("python"), encoding="utf-8")
    project = tomllib.loads(block("toml"))["project"]
    info = tmp_path / "graft_intent-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "".join(f"{name} = {value}\n" for name, value in project["entry-points"]["graftwork"].items())
    (info / "entry_points.txt").write_text(f"[graftwork]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("graft_intent")
    sys.modules.pop("graft_intent", None)


def test_the_example_passes_the_test_that_the_readme_shows(example: ModuleType) -> None:
    names: dict[str, Any] = {}
    exec(block("py"), names)
    names["test_plugin_conforms"]()


def test_the_example_is_found_when_installed(example: ModuleType) -> None:
    host = PluginHost.load(only="intent")
    assert host.faults == []
    assert host.provider("task", "intent").version == "0.1.0"
    assert isinstance(host.task("intent"), example.IntentTask)


def test_every_hook_stands_in_the_readme_with_its_signature() -> None:
    hooks = [
        (name, function)
        for name, function in vars(hookspecs).items()
        if inspect.isfunction(function) and hasattr(function, "graftwork_spec")
    ]
    assert len(hooks) == 7
    for name, function in hooks:
        signature = str(inspect.signature(function)).replace("'", "")
        assert f"`{name}{signature}`" in README, f"{name}{signature} is not in the README"


def test_the_tables_of_tasks_and_formats_are_complete() -> None:
    host = PluginHost.load(entry_points=False)
    for name, task in host.tasks.items():
        row = re.search(rf"^\| `{name}` \| ([^|]*) \|", README, re.MULTILINE)
        assert row is not None, f"{name} is not in the README"
        assert set(row.group(1).split(", ")) == set(formats_for(host.readers, task))
    for name in host.readers:
        assert f"\n| `{name}` | " in README, f"{name} is not in the README"
