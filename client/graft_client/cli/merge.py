"""``graft adapters merge``: one adapter of several."""

from __future__ import annotations

import click

from graft_client.cli import render
from graft_client.cli.completion import complete_adapter
from graft_client.cli.lazy import Command
from graft_client.cli.session import Session, with_session


@click.command(
    "merge",
    cls=Command,
    examples=[
        "graft adapters merge de-strings@3 de-manuals@1 --weights 0.7,0.3 --name de-both",
        "graft adapters merge de-strings de-manuals --method ties --density 0.4 --name de-both",
    ],
)
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER ADAPTER...", shell_complete=complete_adapter)
@click.option("--name", required=True, shell_complete=complete_adapter, help="The adapter to publish a version of.")
@click.option("--weights", help="One an adapter, with commas between.  [default: the same for all, 1 in sum]")
@click.option(
    "--method",
    type=click.Choice(["linear", "cat", "ties", "dare"]),
    default="linear",
    show_default=True,
    help="cat is exact and adds the ranks up; the others keep the rank.",
)
@click.option("--density", type=click.FloatRange(0, 1, min_open=True), help="ties, dare: the share of values kept.")
@click.option("--seed", type=click.IntRange(min=0), help="dare: which values are dropped.")
@with_session
def merge(
    session: Session,
    adapters: tuple[str, ...],
    name: str,
    weights: str | None,
    method: str,
    density: float | None,
    seed: int | None,
) -> None:
    """Make one LoRA adapter of several for the same base model and task, with them in its lineage.

    What the task keeps with an adapter (its languages, its catalogue) is taken from the first.
    """
    if len(adapters) < 2:
        raise click.UsageError("name two adapters at least")
    session.note(f"merging {len(adapters)} adapters ...")
    with session.client() as client:
        version = client.merge_adapters(
            adapters, name=name, weights=_numbers(weights), method=method, density=density, seed=seed
        )
    if session.as_json:
        session.emit(version)
    else:
        click.echo(f"merged into {version.ref} ({render.size(version.size_bytes)})")


def _numbers(text: str | None) -> list[float]:
    if text is None:
        return []
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"`{text}` is not numbers with commas between", param_hint="--weights") from None
