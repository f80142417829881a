"""``graft routes``: which share of the requests goes to which version, what watches over it, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from graft_client.cli import render
from graft_client.cli.completion import complete_adapter, complete_route, complete_task
from graft_client.cli.confirm import confirmed
from graft_client.cli.lazy import Group
from graft_client.cli.session import Session, with_session

if TYPE_CHECKING:
    from graft_client.schemas.routes import RouteInfo, RouteSpec

_WHY = click.option("-m", "--why", default="", help="The reason, which is kept in the history.")


@click.group(
    cls=Group,
    examples=[
        "graft routes set translation de-strings@7=90 de-strings@8=10",
        "graft routes show translation",
        'graft routes explain "Turn off the lights" --task translation',
    ],
)
def routes() -> None:
    """Spread requests over versions by weight, and see why each goes where it goes."""


@routes.command(
    "set",
    examples=[
        "graft routes set translation de-strings@7=90 de-strings@8=10",
        "graft routes set translation de-strings@7=90 de-strings@8=10 --max-error-rate 0.05 --max-p95 2",
        "graft routes set qa house@3=100 --shadow house@4 --fallback house@2 --fallback base",
        "graft routes set qa house@3=80 house@4=20 --metric confidence --min-metric 0.4 --window 600",
    ],
)
@click.argument("route", shell_complete=complete_route)
@click.argument("targets", nargs=-1, required=True, metavar="REF=PERCENT...", shell_complete=complete_adapter)
@click.option("--shadow", shell_complete=complete_adapter, help="Gets copies; its answers are kept, never returned.")
@click.option(
    "--fallback",
    multiple=True,
    shell_complete=complete_adapter,
    help="Answers where a target can't load: a version or `base`; can be given again.",
)
@click.option("--max-error-rate", type=click.FloatRange(0, 1), help="Guard: the share of requests that may fail.")
@click.option("--max-p95", type=click.FloatRange(min=0, min_open=True), help="Guard: 95th percentile, in seconds.")
@click.option("--metric", help="Guard: a field of the answers, a number or a list (its length).")
@click.option("--min-metric", type=float, help="Guard: the least mean of --metric.")
@click.option("--max-metric", type=float, help="Guard: the greatest mean of --metric.")
@click.option("--window", type=float, default=300, show_default=True, help="Guard: what is looked at, in seconds.")
@click.option("--min-requests", type=int, default=20, show_default=True, help="Guard: with fewer nothing is decided.")
@_WHY
@with_session
def set_route(
    session: Session,
    route: str,
    targets: tuple[str, ...],
    shadow: str | None,
    fallback: tuple[str, ...],
    max_error_rate: float | None,
    max_p95: float | None,
    metric: str | None,
    min_metric: float | None,
    max_metric: float | None,
    window: float,
    min_requests: int,
    why: str,
) -> None:
    """Make ROUTE, or replace it. The percentages must add up to 100; a single REF alone gets all.

    Named like a task, it is where requests go that name the task alone. With a guard, a target that is not the
    heaviest loses its weight when it crosses a bound. Where somebody else changes the route meanwhile, nothing is
    changed.
    """
    from graft_client.errors import NotFoundError

    bounds = {
        "max_error_rate": max_error_rate,
        "max_p95_seconds": max_p95,
        "metric": metric,
        "min_metric": min_metric,
        "max_metric": max_metric,
    }
    given = {name: value for name, value in bounds.items() if value is not None}
    guard = {**given, "window_seconds": window, "min_requests": min_requests} if given else None
    spec = _spec(targets, {"shadow": shadow, "fallback": list(fallback), "guard": guard})
    with session.client() as client:
        try:
            revision = client.route(route).revision
        except NotFoundError:
            revision = 0
        found = client.set_route(route, spec, why=why, revision=revision)
    if session.as_json:
        session.emit(found)
    else:
        click.echo(f"{found.name} now leads to {', '.join(_targets(found.spec))}")


@routes.command("list", examples=["graft routes list"])
@with_session
def list_routes(session: Session) -> None:
    """List the routes and where they lead."""
    with session.client() as client:
        found = client.routes()
    if session.as_json:
        session.emit(found)
        return
    render.table(
        ["route", "task", "targets", "shadow", "fallback", "guard", "changed"],
        [
            (r.name, r.task, _targets(r.spec), r.spec.shadow, r.spec.fallback, _guard(r.spec), r.updated_at)
            for r in found
        ],
    )


@routes.command("show", examples=["graft routes show translation", "graft routes show translation --json"])
@click.argument("route", shell_complete=complete_route)
@with_session
def show(session: Session, route: str) -> None:
    """Show a route, what its targets did lately, and its history."""
    with session.client() as client:
        found = client.route(route)
        events = client.route_history(route)
    if session.as_json:
        session.emit({"route": found, "history": events})
        return
    _show(found)
    click.echo()
    render.table(
        ["when", "what", "targets", "who", "why"],
        [(e.time, e.kind, _targets(e.spec) if e.spec else None, e.who, e.why) for e in events],
    )


@routes.command("shadow", examples=["graft routes shadow translation --limit 20"])
@click.argument("route", shell_complete=complete_route)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Only the newest of them.")
@with_session
def shadow(session: Session, route: str, limit: int) -> None:
    """Show what a route's shadow answered beside what was returned, the newest first."""
    with session.client() as client:
        records = client.route_shadow(route, limit=limit)
    if session.as_json:
        session.emit(records)
        return
    rows = [(r.adapter, r.text, r.seconds, r.shadow, r.shadow_text or r.error, r.shadow_seconds) for r in records]
    render.table(["version", "answer", "s", "shadow", "its answer", "its s"], rows, right=("s", "its s"))
    answered = [r for r in records if r.error is None]
    same = sum(r.text == r.shadow_text for r in answered)
    click.echo(f"{same} of {len(answered)} the same; {len(records) - len(answered)} failed")


@routes.command("delete", examples=["graft routes delete translation --yes"])
@click.argument("route", shell_complete=complete_route)
@_WHY
@click.option("--yes", is_flag=True, help="Don't ask.")
@with_session
def delete(session: Session, route: str, why: str, yes: bool) -> None:
    """Delete a route; its history is kept."""
    with session.client() as client:
        client.route(route)
        confirmed(f"Delete route {route}?", yes=yes)
        client.delete_route(route, why=why)
    if session.as_json:
        session.emit({"deleted": route})
    else:
        click.echo(f"deleted {route}")


@routes.command(
    "explain",
    examples=[
        'graft routes explain "Turn off the lights"',
        'graft routes explain "Turn off the lights" --task translation --key user-17',
    ],
)
@click.argument("text")
@click.option("--adapter", shell_complete=complete_adapter, help="What the request names: an adapter or a route.")
@click.option("--task", shell_complete=complete_task, help="The task that it names.")
@click.option("--key", help="The key that it brings.")
@with_session
def explain(session: Session, text: str, adapter: str | None, task: str | None, key: str | None) -> None:
    """Show how a request with TEXT would be routed, step by step. Without --adapter and --task: by its text."""
    with session.client() as client:
        found = client.explain(text, adapter=adapter, task=task, key=key)
    if session.as_json:
        session.emit(found)
        return
    for number, step in enumerate(found.steps, 1):
        click.echo(f"{number}. {render.printable(step)}")
    if found.fallback:
        click.echo(f"   if it can't load: {', '.join(found.fallback)}")
    if found.shadow:
        click.echo(f"   copied to: {found.shadow}")


def _spec(targets: tuple[str, ...], rest: dict[str, object]) -> RouteSpec:
    from pydantic import ValidationError

    from graft_client.schemas.routes import RouteSpec

    weights = []
    for target in targets:
        ref, equals, percent = target.rpartition("=")
        if not equals and len(targets) == 1:
            ref, percent = target, "100"
        try:
            weights.append({"ref": ref, "weight": float(percent)})
        except ValueError:
            raise click.BadParameter(f"`{target}` is not REF=PERCENT", param_hint="TARGETS") from None
    try:
        return RouteSpec.model_validate({"targets": weights, **rest})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise click.UsageError(f"{place}: {message}" if place else message) from None


def _targets(spec: RouteSpec) -> list[str]:
    return [f"{target.ref}={target.weight:g}" for target in spec.targets]


def _guard(spec: RouteSpec) -> str | None:
    guard = spec.guard
    if guard is None:
        return None
    bounds = [
        ("errors <=", guard.max_error_rate),
        ("p95 <=", guard.max_p95_seconds),
        (f"{guard.metric} >=", guard.min_metric),
        (f"{guard.metric} <=", guard.max_metric),
    ]
    told = [f"{name} {value:g}" for name, value in bounds if value is not None]
    return f"{', '.join(told)} in {guard.window_seconds:g} s"


def _show(found: RouteInfo) -> None:
    render.fields(
        [
            ("route", found.name),
            ("task", found.task),
            ("revision", found.revision),
            ("shadow", found.spec.shadow),
            ("fallback", found.spec.fallback or None),
            ("guard", _guard(found.spec)),
            ("changed", found.updated_at),
        ]
    )
    click.echo()
    live = {figures.ref: figures for figures in found.live}
    rows = []
    for target in found.spec.targets:
        seen = live.get(target.ref)
        rows.append(
            (
                target.ref,
                f"{target.weight:g} %",
                seen.requests if seen else 0,
                f"{seen.error_rate:.1%}" if seen else None,
                seen.p95_seconds if seen else None,
                seen.metric if seen else None,
            )
        )
    columns = ["target", "weight", "requests", "errors", "p95 s", "metric"]
    render.table(columns, rows, right=columns[1:])
