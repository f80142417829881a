"""The screen of ``graft status --watch``, drawn for whatever width and height there are."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from graft_client.cli import render
from graft_client.schemas.status import AdapterTraffic, ServerStatus

#: Seconds that the speed is remembered.
_MEMORY = 60.0
_BARS = "▁▂▃▄▅▆▇█"
#: Columns of the names of figures, with the gap behind them.
_LABELS = 11
_WIDEST_GRAPH = 60
#: The table's columns of figures and their widths, and the gap between columns.
_FIGURES = {"run": 4, "wait": 4, "tok/s": 7}
_GAP = 1
#: Seconds without figures from the engine that are worth telling.
_SILENT = 3.0


class Dashboard:
    """The last status, the speed of the last minute, and what is wrong. rich draws it in a thread of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._status: ServerStatus | None = None
        #: When, and tokens a second or ``None``. Never changed in place, as it may be drawn meanwhile.
        self._speeds: tuple[tuple[float, float | None], ...] = ()
        self._trouble: str | None = None
        self._lost_at = 0.0

    def update(self, status: ServerStatus) -> None:
        """The server has answered."""
        self._status = status
        self._trouble = None
        self._remember(status.engine.tokens_per_second)

    def lost(self, trouble: str) -> None:
        """The server has not answered; the last figures stay, greyed out."""
        if self._trouble is None:
            self._lost_at = time.monotonic()
        self._trouble = trouble
        self._remember(None)

    def _remember(self, speed: float | None) -> None:
        now = time.monotonic()
        kept = [(at, before) for at, before in self._speeds if at > now - _MEMORY]
        self._speeds = (*kept, (now, speed))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self._trouble is not None:
            yield Text(f"{self._trouble} ({render.duration(time.monotonic() - self._lost_at)})", style="bold red")
        status = self._status
        if status is None:
            return
        style = "dim" if self._trouble is not None else ""
        speeds = [speed for _, speed in self._speeds]
        head = Group(_header(status, self._url), Text(), _figures(status, speeds, options.max_width), Text())
        head_lines = len(console.render_lines(head, options, pad=False)) + (self._trouble is not None)
        # Two lines are the table's heading and what says that there is more.
        room = max(1, options.size.height - head_lines - 2)
        yield Styled(head, style)
        if status.traffic:
            yield Styled(_traffic(status.traffic[:room], options.max_width), style)
        if len(status.traffic) > room:
            yield Text(f"and {len(status.traffic) - room} more", style="dim")


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Values as at most ``width`` bars, the newest last; several share a bar as their mean, ``None`` is a gap."""
    share = max(1, -(-len(values) // max(1, width)))
    # Grouped from the end, so that the newest bar is as much a mean as the others.
    bars = [_mean(values[max(0, end - share) : end]) for end in range(len(values), 0, -share)][::-1]
    most = max((bar for bar in bars if bar is not None), default=0.0)
    return "".join(" " if bar is None else _BARS[round(bar / most * (len(_BARS) - 1)) if most else 0] for bar in bars)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _header(status: ServerStatus, url: str) -> Text:
    engine = status.engine
    silent = engine.stats_age_seconds
    place = " ".join(filter(None, (engine.device, engine.dtype)))
    parts = [
        Text(render.printable(status.base_model.name), style="bold"),
        Text(render.printable(f"{engine.name} on {place}" if place else engine.name)),
        Text("ready", style="bold green")
        if status.ready
        else Text(render.printable(engine.state), style="bold yellow"),
        *([Text(f"the engine is silent for {render.duration(silent)}", style="yellow")] if silent > _SILENT else []),
        Text(f"up {render.duration(status.uptime_seconds)}"),
        *([Text(f"engine restarts: {engine.restarts}", style="yellow")] if engine.restarts else []),
        Text(render.printable(f"{url} (graftwork {status.version})"), style="dim"),
    ]
    return Text("  ").join(parts)


def _figures(status: ServerStatus, speeds: Sequence[float | None], width: int) -> Table:
    engine = status.engine
    room = max(1, min(_WIDEST_GRAPH, width - _LABELS))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("speed", f"{engine.tokens_per_second:.0f} tok/s, {engine.generated_tokens:,} tokens so far")
    grid.add_row("", Text(sparkline(speeds, room), style="cyan", no_wrap=True))
    waiting = f", {engine.waiting} of them for memory or an adapter" if engine.waiting else ""
    grid.add_row("running", f"{status.admitted_requests}{waiting}")
    oldest = f", the oldest for {render.duration(status.queue_age_seconds)}" if status.queued_requests else ""
    grid.add_row("waiting", f"{status.queued_requests}{oldest}")
    if engine.kv_blocks_total:
        blocks = f"  {engine.kv_blocks_used} of {engine.kv_blocks_total} blocks"
        bar = _bar(engine.kv_blocks_used / engine.kv_blocks_total, max(1, room - len(blocks)))
        grid.add_row("KV cache", bar.append(blocks))
    happened = {
        "prompt tokens reused": engine.reused_tokens,
        "preemptions": engine.preemptions,
        "evictions": engine.evictions,
    }
    pinned = f", {len(status.pinned)} pinned" if status.pinned else ""
    grid.add_row("slots", f"{len(engine.loaded_adapters)} of {engine.slots} in use{pinned}")
    for version in status.pinned:
        if version.error is not None:
            grid.add_row("", Text(render.printable(f"not loaded: {version.error}"), style="yellow"))
    if any(happened.values()):
        grid.add_row("so far", ", ".join(f"{count:,} {what}" for what, count in happened.items() if count))
    jobs = [f"{count} {state}" for state, count in status.jobs.items() if count]
    if jobs:
        grid.add_row("jobs", Text(render.printable(", ".join(jobs))))
    for warning in status.warnings:
        grid.add_row("warning", Text(render.printable(warning), style="yellow"))
    return grid


def _bar(fraction: float, width: int) -> Text:
    used = round(min(1.0, fraction) * width)
    return Text.assemble(("━" * used, "cyan"), ("─" * (width - used), "dim"))


def _traffic(rows: Sequence[AdapterTraffic], width: int) -> Table:
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    # Names give way to figures where it is narrow.
    names = max(1, width - sum(_GAP + figure for figure in _FIGURES.values()))
    table.add_column("adapter", overflow="ellipsis", no_wrap=True, max_width=names)
    for name, figure in _FIGURES.items():
        table.add_column(name, justify="right", no_wrap=True, width=figure)
    for row in rows:
        idle = not (row.running or row.waiting or row.tokens_per_second)
        table.add_row(
            Text(render.printable(row.ref)),
            str(row.running),
            str(row.waiting),
            f"{row.tokens_per_second:.1f}",
            style="dim" if idle else "" if row.loaded else "yellow",
        )
    return table
