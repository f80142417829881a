"""What every command that talks to a server shares: ``--url``, ``--json`` and the client made from them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

if TYPE_CHECKING:
    from pydantic import BaseModel

    from graft_client import Client

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Session:
    """The options in force, and what is done with them."""

    url: str | None
    as_json: bool
    key: str | None = field(default=None, repr=False)

    def client(self, **options: Any) -> Client:
        """A client of the chosen server, with ``Client``'s own options; use it in a ``with`` block."""
        from graft_client import Client

        return Client(self.url, key=self.key, **options)

    def emit(self, value: BaseModel | list[Any] | dict[str, Any]) -> None:
        """Prints a document, or several, as JSON on stdout."""
        click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))

    def note(self, text: str) -> None:
        """Says something to a person, on stderr; scripts are not told."""
        if not self.as_json:
            click.echo(text, err=True)


def plain(value: Any) -> Any:
    """Documents as the plain types of JSON."""
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def with_session(command: Callable[Concatenate[Session, P], R]) -> Callable[P, R]:
    """Adds ``--url``, ``--api-key`` and ``--json`` to a command, which gets a ``Session`` as its first argument."""

    @click.option("--url", envvar="GRAFT_URL", help="The server.  [default: http://127.0.0.1:8000]")
    @click.option("--api-key", envvar="GRAFT_API_KEY", help="Your key; others may see it here, the variable is safer.")
    # Eager, so that what is wrong with another option is told as JSON too.
    @click.option("--json", "as_json", is_flag=True, is_eager=True, callback=_remember, help="Print JSON, for scripts.")
    @functools.wraps(command)
    def wrapper(*args: Any, url: str | None, api_key: str | None, as_json: bool, **kwargs: Any) -> R:
        return command(Session(url, as_json, api_key), *args, **kwargs)

    return wrapper  # type: ignore[return-value]


def _remember(ctx: click.Context, _: click.Parameter, as_json: bool) -> bool:
    ctx.meta["graft.json"] = as_json
    return as_json
