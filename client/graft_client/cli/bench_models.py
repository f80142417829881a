"""Which models ``graft bench`` asks: adapters of a graftwork server, made ones among them, or models of any other."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from graft_client.cli.completion import complete_adapter
from graft_client.cli.session import Session

R = TypeVar("R")


def _encodable(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise click.BadParameter("not UTF-8", ctx, param) from None
    return names


_OPTIONS = (
    click.option(
        "--adapter",
        "named",
        multiple=True,
        shell_complete=complete_adapter,
        help="An adapter to ask; can be given again.",
    ),
    click.option(
        "--adapters", "first", type=click.IntRange(min=1), help="Ask so many of the adapters that the server has."
    ),
    click.option(
        "--random-adapters",
        "made",
        type=click.IntRange(min=1),
        help="Make, register and ask so many LoRA adapters with random weights; needs graftwork[server].",
    ),
    click.option(
        "--rank", type=click.IntRange(1, 1024), default=16, show_default=True, help="The rank of random adapters."
    ),
    click.option("--keep", is_flag=True, help="Don't delete the random adapters; the next run finds them."),
    click.option(
        "--base-model", help="For random adapters for a server on another machine: its base model, as for graft serve."
    ),
    click.option(
        "--model",
        "others",
        multiple=True,
        callback=_encodable,
        help="A model to ask, of any server; can be given again.  [default: the first in /v1/models]",
    ),
)


@dataclass(frozen=True)
class ModelChoice:
    """What the options say. At most one of ``named``, ``first``, ``made`` and ``others`` is set."""

    named: tuple[str, ...]
    first: int | None
    made: int | None
    others: tuple[str, ...]
    rank: int
    keep: bool
    base_model: str | None

    @contextmanager
    def names(self, session: Session, api_key: str | None) -> Iterator[list[str]]:
        """The models to ask. Random adapters are there within the ``with``.

        Raises:
            UsageError: the server has fewer adapters than are to be asked.
            NotFoundError: it has not the one that is named.
        """
        if self.made is not None:
            from graft_client.cli.bench_adapters import random_adapters

            with (
                session.client() as client,
                random_adapters(
                    session, client, self.made, rank=self.rank, base_model=self.base_model, keep=self.keep
                ) as names,
            ):
                yield names
        elif self.named:
            yield _checked(session, self.named)
        elif self.first is not None:
            yield _first(session, self.first)
        else:
            yield list(self.others) or [_default(session, api_key)]


def model_options(command: Callable[..., R]) -> Callable[..., R]:
    """Adds the options to a command, which gets them as ``choice``."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> R:
        choice = ModelChoice(**{name: kwargs.pop(name) for name in ModelChoice.__dataclass_fields__})
        if sum(map(bool, (choice.named, choice.first, choice.made, choice.others))) > 1:
            raise click.UsageError("give only one of --adapter, --adapters, --random-adapters and --model")
        return command(*args, choice=choice, **kwargs)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper


def _checked(session: Session, names: tuple[str, ...]) -> list[str]:
    from graft_client.cli.targets import BASE

    with session.client() as client:
        for name in names:
            if name != BASE:
                client.adapter(name.partition("@")[0])
    return list(names)


def _first(session: Session, count: int) -> list[str]:
    from graft_client.errors import UsageError

    with session.client() as client:
        found = [adapter.name for adapter in client.adapters()]
    if len(found) < count:
        raise UsageError(f"the server has {len(found)} adapters, not {count}; --random-adapters makes some")
    return found[:count]


def _default(session: Session, api_key: str | None) -> str:
    from graft_client.bench.run import served_model

    return asyncio.run(served_model(str(session.url), api_key))
