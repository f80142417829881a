"""``graft query``: one request, its answer streamed to stdout."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from graft_client.cli.completion import complete_adapter, complete_task
from graft_client.cli.lazy import Command
from graft_client.cli.sampling import sampling_options
from graft_client.cli.session import Session, with_session
from graft_client.cli.stdin import reading_text

if TYPE_CHECKING:
    from graft_client.schemas.predict import SamplingOverrides


@click.command(
    cls=Command,
    examples=[
        'graft query de-strings "Turn off the lights"',
        'graft query --task translation "Turn off the lights"',
        'graft query films --input \'{"history": ["Alien (1979)"], "k": 5}\' --json',
        "graft query de-strings@2 - < note.txt",
        'graft query --auto "Turn off the lights"',
    ],
)
@click.argument("adapter", required=False, shell_complete=complete_adapter)
@click.argument("text", required=False)
@click.option("--task", shell_complete=complete_task, help="Without ADAPTER: let the server choose one.")
@click.option("--auto", is_flag=True, help="Let the server choose an adapter by the text.")
@click.option("--key", help="Requests with the same key go to the same target of a route.")
@click.option("--input", "request", metavar="JSON", help="A request by the task's schema, instead of TEXT.")
@sampling_options
@with_session
def query(
    session: Session,
    adapter: str | None,
    text: str | None,
    task: str | None,
    auto: bool,
    key: str | None,
    request: str | None,
    sampling: SamplingOverrides | None,
) -> None:
    """Send TEXT to ADAPTER (`name`, `name@N`, `name@alias`, a route, or `base` with --task) and stream the answer.

    Without TEXT, or with `-`, the text is read from stdin. With --task or --auto a single argument is the text.
    """
    from graft_client.cli.answers import print_footer, print_stream

    if (task is not None or auto) and text is None and adapter is not None and request is None:
        adapter, text = None, adapter
    if auto:
        if adapter is not None:
            raise click.UsageError("with --auto the server chooses; leave ADAPTER out")
        adapter = "auto"
    if adapter is None and task is None:
        raise click.UsageError("name an adapter, a task with --task, or --auto")
    if request is not None and text is not None:
        raise click.UsageError("give either TEXT or --input, not both")
    body = _parse(request) if request is not None else _text(text)
    with session.client() as client:
        if session.as_json:
            session.emit(client.predict(adapter, body, task=task, key=key, sampling=sampling))
        else:
            events = client.predict_stream(adapter, body, task=task, key=key, sampling=sampling)
            print_footer(print_stream(events))


def _parse(request: str) -> dict[str, Any]:
    try:
        value = json.loads(request)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--input") from None
    if not isinstance(value, dict):
        raise click.BadParameter("must be a JSON object", param_hint="--input")
    return value


def _text(text: str | None) -> str:
    if text is not None and text != "-":
        return text
    if text is None and sys.stdin.isatty():
        raise click.UsageError("give TEXT or --input, or pipe the text in")
    with reading_text():
        piped = sys.stdin.read().strip()
    if not piped:
        raise click.UsageError("stdin is empty; give TEXT or --input, or pipe the text in")
    return piped
