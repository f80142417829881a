"""``graft bench``: load on a server, and what becomes of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from graft_client.bench.popularity import Popularity
from graft_client.bench.workload import Length
from graft_client.cli.bench_models import ModelChoice, model_options
from graft_client.cli.lazy import Command
from graft_client.cli.progress import load_bar
from graft_client.cli.session import Session, with_session

if TYPE_CHECKING:
    from graft_client.bench.records import Measurements
    from graft_client.bench.settings import BenchSettings

_CONCURRENCY, _REQUESTS, _MOST_WARMUP = 8, 100, 32


def _length(ctx: click.Context, param: click.Parameter, value: str) -> Length:
    try:
        return Length.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


_POSITIVE = click.FloatRange(min=0, min_open=True)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(
    cls=Command,
    examples=[
        "graft bench --concurrency 16 --requests 200",
        "graft bench --rate 5 --seconds 60 --random-adapters 32 --rank 16 --popularity zipf",
        "graft bench --adapter de-strings --adapter films --prompt-tokens 32-256 --output-tokens 16-128",
        "graft bench --rate 2 --seconds 60 --ttft-target 500 --tpot-target 80 -o result.json --plot result.png",
        "graft bench --url http://gpu-1:8000 --model org/name --endpoint chat --no-ignore-eos",
    ],
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    help=f"Closed loop: so many clients, each of which waits for its answer.  [default: {_CONCURRENCY}]",
)
@click.option("--rate", type=_POSITIVE, help="Open loop: Poisson arrivals, so many a second on average.")
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    help=f"Send so many.  [default: {_REQUESTS}, where --seconds is not given]",
)
@click.option("--seconds", type=_POSITIVE, help="Send for so long; what is in flight then is still answered.")
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    help=f"Send so many before that are not counted.  [default: one a model, at most {_MOST_WARMUP}]",
)
@model_options
@click.option(
    "--popularity",
    type=click.Choice(get_args(Popularity)),
    default="uniform",
    show_default=True,
    help="How requests fall on the models; zipf favours those that are named first.",
)
@click.option(
    "--zipf-exponent", type=click.FloatRange(min=0), default=1.0, show_default=True, help="0 is uniform, 2 is steep."
)
@click.option(
    "--prompt-tokens",
    callback=_length,
    default="128",
    show_default=True,
    metavar="N or N-M",
    help="Length of a prompt, approximately: so many words of an invented text.",
)
@click.option(
    "--output-tokens",
    callback=_length,
    default="64",
    show_default=True,
    metavar="N or N-M",
    help="Length of an answer.",
)
@click.option("--no-ignore-eos", is_flag=True, help="Let answers end early; for servers that lack ignore_eos.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed sends the same requests.")
@click.option(
    "--endpoint",
    type=click.Choice(["completions", "chat"]),
    default="completions",
    show_default=True,
    help="/v1/completions, or /v1/chat/completions.",
)
@click.option(
    "--timeout", type=_POSITIVE, default=600.0, show_default=True, help="Seconds of silence that fail a request."
)
@click.option(
    "--ttft-target",
    "ttft_target_ms",
    type=_POSITIVE,
    metavar="MS",
    help="Goodput: most milliseconds to the first token.",
)
@click.option(
    "--tpot-target", "tpot_target_ms", type=_POSITIVE, metavar="MS", help="Goodput: most milliseconds a token after it."
)
@click.option("-o", "--output", type=_FILE, help="Write the result as JSON.")
@click.option(
    "--plot", type=_FILE, help="Draw latencies and throughput, as .png, .svg or .pdf; needs graftwork[bench]."
)
@with_session
def bench(
    session: Session,
    /,
    choice: ModelChoice,
    output: Path | None,
    plot: Path | None,
    **load: Any,
) -> None:
    """Put load on a server and measure its throughput and latencies.

    The server is this one or any other that streams OpenAI's completions. Its base model is asked unless adapters or
    models are chosen. Ctrl-C ends a run and shows what was measured until then.
    """
    if load["concurrency"] is not None and load["rate"] is not None:
        raise click.UsageError("give --concurrency (a closed loop) or --rate (an open loop), not both")
    from graft_client._transport import resolve_url
    from graft_client.bench.plot import check_plot, draw
    from graft_client.bench.records import Measurements
    from graft_client.bench.result import summarise
    from graft_client.cli.bench_report import notes, show_result
    from graft_client.cli.outputs import check_folder, named, whole_file

    for file in filter(None, (output, plot)):
        check_folder(file)
    if plot is not None:
        check_plot(plot)
    # As people give it to OpenAI's SDKs.
    session = replace(session, url=resolve_url(session.url).removesuffix("/v1"))
    measurements = Measurements()
    with choice.names(session, session.key) as models:
        settings = _settings(session, models, load)
        interrupted = _measure(session, settings, measurements, session.key)
        if interrupted and not measurements.records:
            raise KeyboardInterrupt
        result = summarise(settings, measurements, interrupted=interrupted)
        # Shown first: what can't be written is not lost.
        if session.as_json:
            session.emit(result)
        else:
            show_result(result)
        for note in notes(result):
            session.note(note)
        if output is not None:
            with whole_file(output) as sink:
                sink.write(result.model_dump_json(indent=2) + "\n")
        if plot is not None:
            with named(plot):
                draw(result, measurements, plot)
    if interrupted:
        raise KeyboardInterrupt
    if not result.answered:
        raise click.exceptions.Exit(1)


def _settings(session: Session, models: list[str], load: dict[str, Any]) -> BenchSettings:
    """The options with the defaults that depend on each other."""
    from graft_client.bench.settings import BenchSettings

    given = dict(load)
    given["ignore_eos"] = not given.pop("no_ignore_eos")
    if given["rate"] is None and given["concurrency"] is None:
        given["concurrency"] = _CONCURRENCY
    if given["seconds"] is None and given["requests"] is None:
        given["requests"] = _REQUESTS
    if given["warmup"] is None:
        given["warmup"] = min(len(models), _MOST_WARMUP)
    return BenchSettings(url=str(session.url), models=models, **given)


def _measure(session: Session, settings: BenchSettings, measurements: Measurements, api_key: str | None) -> bool:
    """Carries the run out; whether it was interrupted."""
    from graft_client.bench.run import run

    with load_bar(session, requests=settings.requests, seconds=settings.seconds) as tell:
        try:
            asyncio.run(run(settings, measurements, api_key=api_key, tell=tell))
        except KeyboardInterrupt:
            return True
    return False
