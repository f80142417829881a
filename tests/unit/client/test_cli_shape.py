"""Promises about every command: light imports, help with examples, common options, documentation."""

from __future__ import annotations

import subprocess
import sys
import time

import click
import pytest

from graft_client.cli import docs, root
from unit.client.conftest import Graft

ALL = list(docs.commands())
LEAVES = [(path, command) for path, command in ALL if not isinstance(command, click.Group)]


def words(found: tuple[tuple[str, ...], click.Command]) -> str:
    return " ".join(found[0])


@pytest.mark.parametrize("found", ALL, ids=words)
def test_help_ends_with_examples(graft: Graft, found: tuple[tuple[str, ...], click.Command]) -> None:
    path, _ = found
    result = graft(*path[1:], "--help")
    assert result.exit_code == 0
    _, title, examples = result.stdout.partition("\nExamples:\n")
    assert title
    assert all("graft" in line for line in examples.strip().splitlines())


@pytest.mark.parametrize("found", ALL, ids=words)
def test_examples_are_command_lines_that_parse(found: tuple[tuple[str, ...], click.Command]) -> None:
    """Each example names real commands and real options."""
    import shlex

    for example in found[1].examples:  # type: ignore[attr-defined]
        command, arguments = root, shlex.split(example.partition(" < ")[0].partition(" > ")[0], comments=True)
        if arguments[0] != "graft":  # a line of shell around graft
            continue
        rest = arguments[1:]
        while isinstance(command, click.Group):
            command = command.get_command(click.Context(command), rest.pop(0))
            assert command is not None, example
        known = {name for param in command.params for name in param.opts}
        assert {word for word in rest if word.startswith("-") and word != "-"} <= known, example


@pytest.mark.parametrize("found", LEAVES, ids=words)
def test_commands_that_ask_a_server_have_url_and_json(found: tuple[tuple[str, ...], click.Command]) -> None:
    path, command = found
    options = {name for param in command.params for name in param.opts}
    assert ({"--url", "--json"} <= options) is (path[1] not in ("serve", "completion"))


def test_the_readme_has_the_whole_reference() -> None:
    readme = docs.README.read_text(encoding="utf-8")
    assert docs.updated(readme) == readme, "run `python -m graft_client.cli.docs`"
    for path, command in ALL[1:]:
        assert f"`{' '.join(path)}`" in readme
        for param in command.params:
            assert not isinstance(param, click.Option) or f"`{param.opts[-1]}`" in readme


def test_the_root_lists_each_commands_own_summary(graft: Graft) -> None:
    listed = graft("--help").stdout
    for path, command in ALL:
        if len(path) == 2:
            assert f"  {path[1]}" in listed
            assert command.help


def loaded_by(*arguments: str) -> set[str]:
    """Top-level packages in the process after a command."""
    code = (
        "import sys\nfrom graft_client.cli import main\n"
        f"sys.argv = ['graft', *{list(arguments)!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('\\n' + ' '.join({name.split('.')[0] for name in sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(run.stdout.splitlines()[-1].split())


HEAVY = {"torch", "transformers", "fastapi", "graft_server", "graft_plugins", "httpx", "pydantic", "rich"}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([name, "--help"] for name in ("train", "serve", "bench")), ["--version"]],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert not loaded_by(*arguments) & HEAVY


def test_a_command_never_imports_the_server_or_the_plugins() -> None:
    loaded = loaded_by("status", "--url", "http://127.0.0.1:1")
    assert "httpx" in loaded
    assert not loaded & {"torch", "transformers", "fastapi", "graft_server", "graft_plugins"}


def test_help_answers_in_under_three_tenths_of_a_second() -> None:
    command = [sys.executable, "-c", "from graft_client.cli import main; main()", "--help"]
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.3
