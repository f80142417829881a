"""The options that change how answers are drawn; left out, the task decides."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from graft_client.schemas.predict import SamplingOverrides

R = TypeVar("R")

_OPTIONS = (
    click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate."),
    click.option("--temperature", type=click.FloatRange(0, 5), help="0 takes the likeliest token."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Nucleus sampling."),
    click.option("--top-k", type=click.IntRange(min=0), help="Keep the k likeliest tokens; 0 keeps all."),
    click.option("--seed", type=int, help="Makes a sampled answer repeatable."),
    click.option("--stop", multiple=True, metavar="TEXT", help="Ends the answer; can be given again."),
)


def sampling_options(command: Callable[..., R]) -> Callable[..., R]:
    """Adds the options to a command, which gets them as ``sampling``, or None where none was given."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> R:
        names = ("max_tokens", "temperature", "top_p", "top_k", "seed")
        given = {name: value for name in names if (value := kwargs.pop(name)) is not None}
        if stop := kwargs.pop("stop"):
            given["stop"] = list(stop)
        return command(*args, sampling=_overrides(given), **kwargs)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper


def _overrides(given: dict[str, Any]) -> SamplingOverrides | None:
    if not given:
        return None
    from graft_client.schemas.predict import SamplingOverrides

    return SamplingOverrides(**given)
