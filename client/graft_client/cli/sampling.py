"""The options that change how answers are drawn; left out, the task decides."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from graft_client.schemas.predict import SamplingOverrides

R = TypeVar("R")


def _biases(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[int, float] | None:
    """Each ``ID=BIAS`` as numbers."""
    biases = {}
    for value in values:
        token, _, bias = value.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise click.BadParameter(f"`{value}` is not ID=BIAS, for instance 198=-100") from None
    return biases or None


_OPTIONS = (
    click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate."),
    click.option("--min-tokens", type=click.IntRange(min=0), help="Tokens before which nothing ends the answer."),
    click.option("--temperature", type=click.FloatRange(0, 5), help="0 takes the likeliest token."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Nucleus sampling."),
    click.option("--top-k", type=click.IntRange(min=0), help="Keep the k likeliest tokens; 0 keeps all."),
    click.option("--min-p", type=click.FloatRange(0, 1), help="Keep tokens with this share of the likeliest's."),
    click.option("--seed", type=int, help="Makes a sampled answer repeatable."),
    click.option(
        "--repetition-penalty",
        type=click.FloatRange(0, 10, min_open=True),
        help="Above 1 discourages what stands in prompt and answer.",
    ),
    click.option(
        "--presence-penalty", type=click.FloatRange(-2, 2), help="Above 0 discourages what stands in the answer."
    ),
    click.option("--frequency-penalty", type=click.FloatRange(-2, 2), help="The same, for each time it stands there."),
    click.option(
        "--logit-bias",
        multiple=True,
        callback=_biases,
        metavar="ID=BIAS",
        help="Makes a token likelier, or with -100 impossible; can be given again.",
    ),
    click.option("--stop", multiple=True, metavar="TEXT", help="Ends the answer; can be given again."),
    click.option(
        "--stop-token-id",
        "stop_token_ids",
        type=click.IntRange(min=0),
        multiple=True,
        metavar="ID",
        help="A token that ends the answer; can be given again.",
    ),
    click.option("--ignore-eos", is_flag=True, help="Generate on where the model would end its answer."),
)


def sampling_options(command: Callable[..., R]) -> Callable[..., R]:
    """Adds the options to a command, which gets them as ``sampling``, or None where none was given."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> R:
        given = {name: kwargs.pop(name) for name in _NAMES}
        return command(*args, sampling=_overrides(given), **kwargs)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper


#: As the fields of ``SamplingOverrides``.
_NAMES = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "stop",
    "stop_token_ids",
    "ignore_eos",
)


def _overrides(options: dict[str, Any]) -> SamplingOverrides | None:
    given = {name: value for name, value in options.items() if value is not None and value is not False and value != ()}
    if not given:
        return None
    from pydantic import ValidationError

    from graft_client.schemas.predict import SamplingOverrides

    try:
        return SamplingOverrides(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise click.UsageError(f"{place}: {message}" if place else message) from None
