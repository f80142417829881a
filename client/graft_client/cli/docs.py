"""Writes the command-line reference into ``client/README.md``, from the commands themselves.

Run ``python -m graft_client.cli.docs`` after changing a command; a test fails while the README is behind.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from graft_client.cli import root
from graft_client.cli.lazy import Command, Group

README = Path(__file__).parents[2] / "README.md"
BEGIN = "<!-- reference: written by `python -m graft_client.cli.docs` -->"
END = "<!-- end of reference -->"


def commands(
    command: click.Command = root, path: tuple[str, ...] = ("graft",)
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it, groups before what is in them."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1])
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, (*path, name))


def reference() -> str:
    """The whole reference as Markdown."""
    return "\n".join(_section(path, command) for path, command in commands() if len(path) > 1)


def updated(readme: str) -> str:
    """``readme`` with the reference between its markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README lacks `{BEGIN}` or `{END}`")
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def _section(path: tuple[str, ...], command: click.Command) -> str:
    name = " ".join(path)
    text = inspect.cleandoc(command.help or "").strip()
    parts = [f"### `{name}`" if len(path) == 2 else f"#### `{name}`", text]
    options = [param for param in command.params if isinstance(param, click.Option)]
    if not isinstance(command, click.Group):
        words = [_argument(param) for param in command.params if isinstance(param, click.Argument)]
        parts.insert(1, f"`{' '.join([name, '[OPTIONS]', *words])}`")
        if options:
            parts.append("\n".join(["| option | meaning |", "| --- | --- |", *map(_option, options)]))
    if isinstance(command, Command | Group) and command.examples:
        parts.append("\n".join(["```", *command.examples, "```"]))
    return "\n\n".join(parts) + "\n"


def _argument(param: click.Argument) -> str:
    name = (param.name or "").upper()
    name = f"{name}..." if param.nargs == -1 else name
    return name if param.required else f"[{name}]"


def _option(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    if not option.is_flag:
        names += f" {_value(option)}"
    meaning = option.help or ""
    if option.required:
        meaning += " Required."
    if option.show_default:
        meaning += f"  [default: {option.default}]"
    if option.envvar:
        meaning += f"  [env: {option.envvar}]"
    return f"| {names} | {meaning} |".replace("  [", " [")


def _value(option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return " / ".join(map(str, option.type.choices))
    return option.metavar or option.type.name.split(" ")[0].upper()


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
    click.echo(f"wrote {README}")
