"""Printing an answer as it is written."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import click

from graft_client.cli import render
from graft_client.errors import ProtocolError
from graft_client.schemas.predict import PredictEvent, PredictResponse


def print_stream(events: Iterable[PredictEvent]) -> PredictResponse:
    """Prints deltas as they come and ends the line; an answer without deltas is printed whole.

    Raises:
        ProtocolError: the stream ended before the result.
    """
    written = False

    def printed() -> Iterator[PredictEvent]:
        nonlocal written
        for event in events:
            if event.delta:
                click.echo(_shown(event.delta), nl=False)
                sys.stdout.flush()
                written = True
            yield event

    try:
        result = read_result(printed())
    finally:
        if written:
            click.echo()
    if not written:
        click.echo(_shown(result.text))
    return result


def read_result(events: Iterable[PredictEvent]) -> PredictResponse:
    """The answer at the end of a stream.

    Raises:
        ProtocolError: the stream ended before the result.
    """
    result: PredictResponse | None = None
    for event in events:
        result = event.result or result
    if result is None:
        raise ProtocolError("the server ended the answer before it was complete")
    return result


def print_footer(result: PredictResponse) -> None:
    """Which version answered, tokens and seconds, dim, for a person at a terminal."""
    if not (sys.stderr.isatty() and sys.stdout.isatty()):
        return
    usage = result.usage
    cut = ", cut off at the token limit" if result.finish_reason == "length" else ""
    footer = (
        f"{result.adapter}  {usage.prompt_tokens} + {usage.completion_tokens} tokens  {result.timings.total:.2f} s{cut}"
    )
    click.secho(footer, dim=True, err=True)
    if (choice := result.routing) is not None:
        second = f", runner-up {choice.runner_up} with {choice.runner_up_confidence:.2f}" if choice.runner_up else ""
        click.secho(f"chosen by the text with confidence {choice.confidence:.2f}{second}", dim=True, err=True)


def _shown(text: str) -> str:
    return render.printable(text) if sys.stdout.isatty() else text
