"""``graft chat``: an interactive loop over one adapter."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graft_client.cli.completion import complete_adapter, complete_task
from graft_client.cli.lazy import Command
from graft_client.cli.sampling import sampling_options
from graft_client.cli.session import Session, with_session
from graft_client.cli.stdin import reading_text

if TYPE_CHECKING:
    from graft_client.schemas.predict import SamplingOverrides

_CHAT = "chat"


@click.command(cls=Command, examples=["graft chat helper", "graft chat base --task chat", "graft chat de-strings"])
@click.argument("adapter", shell_complete=complete_adapter)
@click.option("--task", shell_complete=complete_task, help="The task for ADAPTER `base`.  [default: chat]")
@sampling_options
@with_session
def chat(session: Session, adapter: str, task: str | None, sampling: SamplingOverrides | None) -> None:
    """Talk with ADAPTER, a line at a time; an adapter of the chat task remembers the conversation.

    /reset forgets the conversation, /quit (or Ctrl-D) ends, Ctrl-C stops an answer.
    With --json each answer is one line of JSON. A line that fails does not end it; where lines are piped in,
    the exit code is the one of the first that failed.
    """
    from graft_client.cli.failure import Failure
    from graft_client.cli.targets import BASE, task_of
    from graft_client.errors import ServerError, UsageError

    if adapter == BASE and task is None:
        task = _CHAT
    with session.client() as client, _history():
        remembers = task_of(client, adapter, task) == _CHAT
        messages: list[dict[str, str]] = []
        failed: Failure | None = None
        for line in _lines():
            if line == "/quit":
                break
            if line == "/reset":
                messages.clear()
                continue
            turn = [*messages, {"role": "user", "content": line}]
            body: str | dict[str, Any] = {"messages": turn} if remembers else line
            try:
                answer = _answer(session, client.predict_stream(adapter, body, task=task, sampling=sampling))
            except (ServerError, UsageError) as error:
                failure = Failure(error, as_json=session.as_json)
                failure.show()
                failed = failed or failure
                if messages:
                    session.note("/reset forgets the conversation.")
                continue
            if remembers and answer is not None:
                messages = [*turn, {"role": "assistant", "content": answer}]
    # A person has seen what failed, and went on.
    if failed is not None and not sys.stdin.isatty():
        raise click.exceptions.Exit(failed.exit_code)


def _answer(session: Session, events: Any) -> str | None:
    """Prints one answer and returns its text; None where Ctrl-C stopped it."""
    from graft_client.cli.answers import print_footer, print_stream, read_result

    with closing(events):
        try:
            if session.as_json:
                result = read_result(events)
                click.echo(result.model_dump_json())
            else:
                result = print_stream(events)
                print_footer(result)
        except KeyboardInterrupt:
            click.echo(err=True)
            return None
    text: str = result.text
    return text


def _lines() -> Iterator[str]:
    """The lines that are typed or piped in, blank ones left out, until the end or Ctrl-C at the prompt.

    Raises:
        click.UsageError: one is no text.
    """
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            with reading_text():
                line = input(prompt).strip()
        except EOFError:
            if prompt:
                click.echo()
            return
        if line:
            yield line


@contextmanager
def _history() -> Iterator[None]:
    """Arrow keys recall earlier lines, also those of earlier sessions, where this Python has readline."""
    if not sys.stdin.isatty():
        yield
        return
    try:
        import readline
    except ImportError:
        yield
        return
    file = Path(os.environ.get("GRAFT_CACHE", "~/.cache/graftwork")).expanduser() / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        # A history that can't be kept is no reason to fail.
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
