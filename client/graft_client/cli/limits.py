"""The options that set how much a key may ask or an adapter may be asked, and how limits are shown."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from graft_client.schemas.limits import Limits

R = TypeVar("R")

_DEFAULT = -1
_WORDS = {"unlimited": 0, "default": _DEFAULT}
_UNITS = {"requests_per_minute": "requests/min", "tokens_per_minute": "tokens/min", "tokens_per_day": "tokens/day"}


class _Limit(click.ParamType[int]):
    """A number from 1, or a word for none at all or the server's."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value in _WORDS:
            return _WORDS[value]
        if not (str(value).isascii() and str(value).isdecimal() and 1 <= int(value) <= 10**12):
            self.fail(
                f"`{value}` is no limit: give a number from 1, `unlimited`, or `default` (the server's)", param, ctx
            )
        return int(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(word) for word in _WORDS if word.startswith(incomplete)]


_REQUESTS = "Requests to models in a minute: a number, `unlimited`, or `default` (what the server is set to)."
_OPTIONS = (
    click.option("--requests-per-minute", type=_Limit(), metavar="LIMIT", help=_REQUESTS),
    click.option("--tokens-per-minute", type=_Limit(), metavar="LIMIT", help="Tokens in a minute, answers included."),
    click.option("--tokens-per-day", type=_Limit(), metavar="LIMIT", help="Tokens in a day, answers included."),
)


def with_limits(command: Callable[..., R]) -> Callable[..., R]:
    """Adds the options to a command, which gets those that were given as ``limits``; ``None`` is the server's."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> R:
        given = {name: kwargs.pop(name) for name in _UNITS}
        limits = {name: None if value == _DEFAULT else value for name, value in given.items() if value is not None}
        return command(*args, limits=limits, **kwargs)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper


def shown(limits: Limits) -> str | None:
    """Limits in one line; ``None`` where there are none of its own."""
    parts = []
    for name, unit in _UNITS.items():
        value = getattr(limits, name)
        if value is not None:
            parts.append(f"{value:,} {unit}" if value else f"unlimited {unit}")
    return ", ".join(parts) or None
