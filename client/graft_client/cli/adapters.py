"""``graft adapters``: what is registered, and bringing adapters in and out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from graft_client.cli import render
from graft_client.cli.bundles import pull, push
from graft_client.cli.completion import complete_adapter, complete_task
from graft_client.cli.confirm import confirmed
from graft_client.cli.lazy import Group
from graft_client.cli.lifecycle import gc, history, promote, rollback, unalias
from graft_client.cli.limit_adapter import limit
from graft_client.cli.limits import shown as shown_limits
from graft_client.cli.merge import merge
from graft_client.cli.progress import byte_bar
from graft_client.cli.session import Session, with_session
from graft_client.cli.targets import split_ref, version_of

if TYPE_CHECKING:
    from graft_client.schemas.adapters import VersionInfo


@click.group(
    cls=Group,
    examples=[
        "graft adapters list",
        "graft adapters register ./some-peft-folder --name x --task translation",
        "graft adapters export de-strings@3 -o ./de-strings",
        "graft adapters pin de-strings",
        "graft adapters promote de-strings@3 production",
    ],
)
def adapters() -> None:
    """List, register, promote, export, pin and delete adapters."""


@adapters.command("list", examples=["graft adapters list --task translation"])
@click.option("--task", shell_complete=complete_task, help="Only those of this task.")
@with_session
def list_adapters(session: Session, task: str | None) -> None:
    """List the adapters with their latest versions and those that are pinned."""
    with session.client() as client:
        found = client.adapters(task=task)
    if session.as_json:
        session.emit(found)
        return
    rows = []
    for adapter in found:
        latest = next((v for v in adapter.versions if v.version == adapter.latest), None)
        rows.append(
            (
                adapter.name,
                adapter.task,
                latest.ref if latest else None,
                latest.method if latest else None,
                _score(latest),
                len(adapter.versions),
                [f"@{version.version}" for version in adapter.versions if version.pinned],
                [f"@{alias} = @{number}" for alias, number in adapter.aliases.items()],
                latest.created_at if latest else adapter.created_at,
            )
        )
    columns = ["name", "task", "latest", "method", "score", "versions", "pinned", "aliases", "published"]
    render.table(columns, rows, right=("versions",))


@adapters.command("show", examples=["graft adapters show de-strings", "graft adapters show de-strings@2"])
@click.argument("adapter", shell_complete=complete_adapter)
@with_session
def show(session: Session, adapter: str) -> None:
    """Show an adapter and its versions; with `name@N` or an alias the lineage and metrics of that version."""
    name, which = split_ref(adapter)
    with session.client() as client:
        if which is not None:
            version = client.version(name, which)
            if session.as_json:
                session.emit(version)
            else:
                _show_version(version)
            return
        found = client.adapter(name)
    if session.as_json:
        session.emit(found)
        return
    aliases = [f"@{alias} = @{number}" for alias, number in found.aliases.items()]
    limits, created = ("limits", shown_limits(found.limits)), ("created", found.created_at)
    render.fields([("name", found.name), ("task", found.task), ("aliases", aliases or None), limits, created])
    click.echo()
    render.table(
        ["version", "pinned", "method", "rows", "score", "size", "job", "published"],
        [
            (v.ref, v.pinned or None, v.method, v.train_rows, _score(v), render.size(v.size_bytes), v.job, v.created_at)
            for v in found.versions
        ],
        right=("rows", "size"),
    )
    latest = next((v for v in found.versions if v.version == found.latest), None)
    if latest is not None and latest.evaluation is not None:
        from graft_client.cli.report import show_evaluation

        click.echo()
        show_evaluation(latest.evaluation, adapter=latest.ref)


@adapters.command(
    "register",
    examples=[
        "graft adapters register ./some-peft-folder --name x --task translation",
        "graft adapters register some-peft-folder.zip --name x --task translation",
        "graft adapters register some-owner/some-lora@main --name x --task translation",
        "graft adapters register ./some-peft-folder --name x --task translation --profile rows.jsonl",
    ],
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", required=True, shell_complete=complete_adapter, help="The adapter to publish under.")
@click.option("--task", required=True, shell_complete=complete_task, help="The task it serves.")
@click.option(
    "--profile",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Rows of its task, as for training, that tell `auto` what it is for; can be given again.",
)
@with_session
def register(session: Session, folder: Path, name: str, task: str, profile: tuple[Path, ...]) -> None:
    """Publish a PEFT adapter that was trained elsewhere as the next version of NAME.

    FOLDER, a zip archive of one, or a repository on the model hub (OWNER/REPO or OWNER/REPO@REVISION, at HF_ENDPOINT)
    holds adapter_config.json and adapter_model.safetensors; task_state.json, graft.json and profile.safetensors are
    taken along where they are there. Pickled weights are refused. This command fetches from the hub, with your own
    token; the server never does.
    """
    from graft_client.cli.adapter_files import adapter_files, opened
    from graft_client.cli.uploads import total_bytes

    with opened(folder) as found:
        files = adapter_files(found)
        with session.client() as client, byte_bar("uploading", total_bytes([*files, *profile])) as tell:
            version = client.register_adapter(files, name=name, task=task, profile=profile, progress=tell)
    if session.as_json:
        session.emit(version)
    else:
        click.echo(f"registered {version.ref} ({version.method}, {render.size(version.size_bytes)})")


@adapters.command("pin", examples=["graft adapters pin de-strings", "graft adapters pin de-strings@2"])
@click.argument("adapter", shell_complete=complete_adapter)
@with_session
def pin(session: Session, adapter: str) -> None:
    """Load a version and keep it in its slot, also after a restart of the server: its first answer never waits.

    Without `@N` it is the latest version of now; later ones are not pinned by that. One slot always stays free.
    """
    with session.client() as client:
        version = client.pin_version(*version_of(client, adapter))
    if session.as_json:
        session.emit(version)
    else:
        click.echo(f"pinned {version.ref}")


@adapters.command("unpin", examples=["graft adapters unpin de-strings", "graft adapters unpin de-strings@2"])
@click.argument("adapter", shell_complete=complete_adapter)
@with_session
def unpin(session: Session, adapter: str) -> None:
    """Let the pinned versions of an adapter, or, with `name@N`, that one, leave their slots when others need them."""
    name, which = split_ref(adapter)
    with session.client() as client:
        if which is None:
            numbers = [v.version for v in client.adapter(name).versions if v.pinned]
        else:
            numbers = [version_of(client, adapter)[1]]
        versions = [client.unpin_version(name, each) for each in numbers]
    if session.as_json:
        session.emit(versions)
    else:
        click.echo(f"unpinned {', '.join(v.ref for v in versions)}" if versions else f"no version of {name} is pinned")


@adapters.command("delete", examples=["graft adapters delete de-strings@1", "graft adapters delete de-strings --yes"])
@click.argument("adapter", shell_complete=complete_adapter)
@click.option("--yes", is_flag=True, help="Don't ask.")
@with_session
def delete(session: Session, adapter: str, yes: bool) -> None:
    """Delete an adapter with all its versions, or, with `name@N`, one version.

    What an alias stands for, and what has requests in flight, is not deleted.
    """
    name, which = split_ref(adapter)
    with session.client() as client:
        if which is not None:
            _, number = version_of(client, adapter)
            confirmed(f"Delete version {adapter}?", yes=yes)
            client.delete_version(name, number)
        else:
            count = len(client.adapter(name).versions)
            confirmed(f"Delete adapter {name} with {count} version(s)?", yes=yes)
            client.delete_adapter(name)
    if session.as_json:
        session.emit({"deleted": adapter})
    else:
        click.echo(f"deleted {adapter}")


@adapters.command(
    "export",
    examples=[
        "graft adapters export de-strings -o ./de-strings",
        "graft adapters export de-strings@2 -o out --force",
        "graft adapters export de-strings@production --merged -o ./smollm2-de",
    ],
)
@click.argument("adapter", shell_complete=complete_adapter)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write to.")
@click.option("--force", is_flag=True, help="Write into a folder that is not empty.")
@click.option("--merged", is_flag=True, help="The whole base model with the adapter taken into its weights.")
@with_session
def export(session: Session, adapter: str, output: Path, force: bool, merged: bool) -> None:
    """Write an adapter version's files to a folder, in PEFT's layout, so that other tools can load it.

    With --merged it is a full checkpoint instead, which plain transformers loads.
    """
    from graft_client.cli.adapter_files import check_target, unpack

    check_target(output, force=force)
    with session.client() as client:
        if merged:
            session.note(f"taking {adapter} into the base model ...")
        names = unpack(client.download_merged(adapter) if merged else client.download_adapter(adapter), output)
    if session.as_json:
        session.emit({"adapter": adapter, "folder": str(output), "files": names})
    else:
        click.echo(f"wrote {', '.join(names)} to {output}")


for command in (promote, rollback, history, unalias, gc, merge, push, pull, limit):
    adapters.add_command(command)


def _score(version: VersionInfo | None) -> str | None:
    if version is None or version.evaluation is None:
        return None
    report = version.evaluation.adapter
    return f"{report.primary} {render.cell(report.score)}"


def _show_version(version: VersionInfo) -> None:
    render.fields(
        [
            ("version", version.ref),
            ("pinned", version.pinned),
            ("task", version.task),
            ("method", version.method),
            ("options", [f"{name}={value}" for name, value in sorted(version.options.items())]),
            ("base model", f"{version.base_model} ({version.base_fingerprint[:12]})"),
            ("dataset", version.dataset),
            ("job", version.job),
            ("plugin", " ".join(filter(None, (version.plugin, version.plugin_version))) or None),
            ("seed", version.seed),
            ("rows", version.train_rows),
            (
                "trained in",
                render.duration(version.train_seconds) if version.train_seconds is not None else None,
            ),
            ("tokens", version.train_tokens),
            ("sha256", version.digest),
            ("size", render.size(version.size_bytes)),
            ("published", version.created_at),
        ]
    )
    if version.evaluation is not None:
        from graft_client.cli.report import show_evaluation

        click.echo()
        show_evaluation(version.evaluation, adapter=version.ref)
