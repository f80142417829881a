"""Every route of the server, described once. ``Client`` and ``AsyncClient`` have these functions as methods.

A function checks its arguments, and returns the request to send together with how to read its answer. All of
them raise ``UsageError`` for arguments that cannot be right, before anything is sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter, ValidationError

from graft_client._call import Call, Progress, StreamCall, Upload
from graft_client._transport import encodable, error_of
from graft_client.errors import UsageError
from graft_client.schemas.adapters import AdapterInfo, VersionInfo
from graft_client.schemas.bundles import MergeRequest
from graft_client.schemas.common import JsonObject
from graft_client.schemas.datasets import DatasetCheck, DatasetInfo
from graft_client.schemas.jobs import JobCheck, JobCreate, JobEvent, JobInfo, JobPlan, JobState
from graft_client.schemas.keys import AuditItem, KeyCreate, KeyInfo, NewKey
from graft_client.schemas.lifecycle import (
    AliasEvent,
    ChangeRequest,
    GateEvent,
    GateRequest,
    GcReport,
    GcRequest,
    PromoteRequest,
)
from graft_client.schemas.limits import LimitsChange
from graft_client.schemas.predict import (
    BulkLine,
    BulkRequest,
    EvaluationEvent,
    EvaluationRequest,
    PredictEvent,
    PredictRequest,
    PredictResponse,
    SamplingOverrides,
)
from graft_client.schemas.routes import (
    ExplainRequest,
    Explanation,
    RouteEvent,
    RouteInfo,
    RouteSpec,
    SetRouteRequest,
    ShadowRecord,
)
from graft_client.schemas.status import Health, ServerStatus
from graft_client.schemas.tasks import PluginList, TaskInfo, TrainingInfo

M = TypeVar("M", bound=BaseModel)

#: The alias that is meant where none is named.
PRODUCTION = "production"

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def live() -> Call[Health]:
    """Whether the server's process answers at all."""
    return _get("/health/live", _document(Health))


def ready() -> Call[Health]:
    """Whether the engine takes requests. Raises ``BusyError`` while it does not."""
    return _get("/health/ready", _document(Health))


def status() -> Call[ServerStatus]:
    """Base model, engine, queues and jobs at this moment."""
    return _get("/api/status", _document(ServerStatus))


def plugins() -> Call[PluginList]:
    """The plugins that were loaded, and the faults of those that were not."""
    return _get("/api/plugins", _document(PluginList))


def tasks() -> Call[list[TaskInfo]]:
    """Every task that the server knows."""
    return _get("/api/tasks", _documents(TaskInfo))


def task(name: str) -> Call[TaskInfo]:
    """One task, with the JSON schemas of its examples, requests and responses."""
    return _get(f"/api/tasks/{_segment(name)}", _document(TaskInfo))


def training() -> Call[TrainingInfo]:
    """What a training job can be given: options, methods and data formats."""
    return _get("/api/training", _document(TrainingInfo))


def upload_dataset(
    files: Paths,
    *,
    task: str,
    format: str | None = None,  # noqa: A002 - the name of the field in the API
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Call[DatasetInfo]:
    """Stores files as a dataset of ``task``. The same files give the same dataset, so this can be repeated.

    ``skip_bad`` leaves bad rows out instead of refusing the files; ``progress`` is told the bytes as they go.
    """
    upload = _dataset_form(files, task, format, skip_bad, progress)
    return Call("POST", "/api/datasets", _document(DatasetInfo), upload=upload, repeatable=True)


def check_dataset(
    files: Paths,
    *,
    task: str,
    format: str | None = None,  # noqa: A002 - the name of the field in the API
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Call[DatasetCheck]:
    """Reads files as ``upload_dataset`` does, reports every bad row with its place, and stores nothing."""
    upload = _dataset_form(files, task, format, skip_bad, progress)
    return Call("POST", "/api/datasets/check", _document(DatasetCheck), upload=upload, repeatable=True)


def datasets(*, task: str | None = None) -> Call[list[DatasetInfo]]:
    """The stored datasets, of one task or of all."""
    return _get("/api/datasets", _documents(DatasetInfo), task=task)


def dataset(id: str) -> Call[DatasetInfo]:  # noqa: A002
    """One stored dataset."""
    return _get(f"/api/datasets/{_segment(id)}", _document(DatasetInfo))


def delete_dataset(id: str) -> Call[None]:  # noqa: A002
    """Deletes a dataset; refused while a job that is not finished needs it."""
    return Call("DELETE", f"/api/datasets/{_segment(id)}", _nothing)


def check_job(
    *, task: str, adapter: str, method: str = "lora", options: Mapping[str, Any] | None = None
) -> Call[JobCheck]:
    """Refuses what ``create_job`` would, before there is a dataset; nothing is queued."""
    body = _request(JobPlan, task=task, adapter=adapter, method=method, options=dict(options or {}))
    return Call("POST", "/api/jobs/check", _document(JobCheck), body=body, repeatable=True)


def create_job(
    *,
    task: str,
    dataset: str,
    adapter: str,
    method: str = "lora",
    options: Mapping[str, Any] | None = None,
) -> Call[JobInfo]:
    """Queues a training job, which publishes the next version of ``adapter``."""
    body = _request(JobCreate, task=task, dataset=dataset, adapter=adapter, method=method, options=dict(options or {}))
    return Call("POST", "/api/jobs", _document(JobInfo), body=body)


def jobs(*, state: JobState | str | None = None, limit: int | None = None) -> Call[list[JobInfo]]:
    """Jobs, the newest first, of one state or of all."""
    return _get("/api/jobs", _documents(JobInfo), state=state, limit=limit)


def job(id: str) -> Call[JobInfo]:  # noqa: A002
    """One job and where it stands."""
    return _get(f"/api/jobs/{_segment(id)}", _document(JobInfo))


def cancel_job(id: str) -> Call[JobInfo]:  # noqa: A002
    """Stops a job; its last checkpoint is kept."""
    return Call("POST", f"/api/jobs/{_segment(id)}/cancel", _document(JobInfo))


def resume_job(id: str) -> Call[JobInfo]:  # noqa: A002
    """Queues a failed or cancelled job again, to go on from its last checkpoint."""
    return Call("POST", f"/api/jobs/{_segment(id)}/resume", _document(JobInfo))


def job_events(id: str, *, after: int = 0, follow: bool = True) -> StreamCall[JobEvent]:  # noqa: A002
    """A job's history after event number ``after``, then, with ``follow``, live until the job has finished.

    A connection that breaks is taken up again after the last event that was seen.
    """
    params: dict[str, str | int] = {"after": after} if follow else {"after": after, "follow": "false"}
    return StreamCall(
        "GET",
        f"/api/jobs/{_segment(id)}/events",
        "sse",
        _document(JobEvent),
        params=params,
        headers={"Last-Event-ID": str(after)} if after else {},
        resume=lambda event: job_events(id, after=event.seq, follow=follow),
    )


def adapters(*, task: str | None = None) -> Call[list[AdapterInfo]]:
    """The registered adapters with their versions, of one task or of all."""
    return _get("/api/adapters", _documents(AdapterInfo), task=task)


def adapter(name: str) -> Call[AdapterInfo]:
    """One adapter with its versions."""
    return _get(f"/api/adapters/{_segment(name)}", _document(AdapterInfo))


def version(name: str, which: int | str) -> Call[VersionInfo]:
    """One version of an adapter, by its number or an alias, with its lineage and metrics."""
    return _get(f"/api/adapters/{_segment(name)}/versions/{_segment(str(which))}", _document(VersionInfo))


def register_adapter(
    files: Paths, *, name: str, task: str, profile: Paths = (), progress: Progress | None = None
) -> Call[VersionInfo]:
    """Publishes the files of a PEFT adapter as the next version of ``name``; the rows of ``profile`` tell ``auto`` what
    it is for."""
    upload = Upload({"name": name, "task": task}, _existing(files), progress, _existing(profile) if profile else ())
    return Call("POST", "/api/adapters", _document(VersionInfo), upload=upload)


def pin_version(name: str, number: int) -> Call[VersionInfo]:
    """Loads a version and keeps it in its slot, also after a restart; refused when only one slot is left."""
    return Call("POST", _pin(name, number), _document(VersionInfo), repeatable=True)


def unpin_version(name: str, number: int) -> Call[VersionInfo]:
    """Lets a version leave its slot again when others need it."""
    return Call("DELETE", _pin(name, number), _document(VersionInfo), repeatable=True)


def promote(
    name: str, version: int, alias: str = PRODUCTION, *, why: str = "", in_place: int | None = None
) -> Call[AliasEvent]:
    """Lets an alias stand for a version, once the engine has read it.

    With ``in_place``, the version that the caller saw there (0: none), it is refused where somebody was faster.
    """
    body = _request(PromoteRequest, version=version, why=why, in_place=in_place)
    return Call("POST", _alias(name, alias), _document(AliasEvent), body=body)


def promote_behind_gate(
    name: str,
    version: int,
    alias: str = PRODUCTION,
    *,
    dataset: str,
    min_delta: float = 0.0,
    limit: int | None = None,
    why: str = "",
    in_place: int | None = None,
) -> StreamCall[GateEvent]:
    """Measures a version beside the one in place (or the base) and promotes it if its main metric is better by
    ``min_delta`` at least: progress, then the event. A refusal is raised."""
    fields = {"dataset": dataset, "min_delta": min_delta, "limit": limit, "why": why, "in_place": in_place}
    body = _request(GateRequest, version=version, **fields)
    return StreamCall("POST", f"{_alias(name, alias)}/gate", "ndjson", _gate_event, body=body, repeatable=False)


def rollback(name: str, alias: str = PRODUCTION, *, why: str = "") -> Call[AliasEvent]:
    """Lets an alias stand again for the version that was in place before; again, and it goes back further."""
    return Call("POST", f"{_alias(name, alias)}/rollback", _document(AliasEvent), body=_request(ChangeRequest, why=why))


def remove_alias(name: str, alias: str, *, why: str = "") -> Call[AliasEvent]:
    """Lets an alias stand for nothing any more."""
    return Call("DELETE", _alias(name, alias), _document(AliasEvent), params={"why": why} if why else {})


def history(name: str, *, alias: str | None = None) -> Call[list[AliasEvent]]:
    """What became of an adapter's aliases, or of one, the newest first: who, when and why."""
    return _get(f"/api/adapters/{_segment(name)}/history", _documents(AliasEvent), alias=alias)


def collect_garbage(
    *, keep: int = 3, older_than_days: float = 0.0, adapter: str | None = None, dry_run: bool = True
) -> Call[GcReport]:
    """Deletes all but the newest ``keep`` versions of each adapter, unless something needs them; with ``dry_run`` it
    only says what would go."""
    fields = {"keep": keep, "older_than_days": older_than_days, "adapter": adapter, "dry_run": dry_run}
    return Call("POST", "/api/gc", _document(GcReport), body=_request(GcRequest, **fields), repeatable=dry_run)


def routes() -> Call[list[RouteInfo]]:
    """Every route, with what its targets did lately."""
    return _get("/api/routes", _documents(RouteInfo))


def route(name: str) -> Call[RouteInfo]:
    """One route, with what its targets did lately."""
    return _get(_route(name), _document(RouteInfo))


def set_route(name: str, spec: RouteSpec, *, why: str = "", revision: int | None = None) -> Call[RouteInfo]:
    """Makes a route or changes it; with ``revision``, the one that the caller saw (0: no route), it is refused where
    somebody was faster."""
    body = _request(SetRouteRequest, spec=spec, why=why, revision=revision)
    return Call("POST", _route(name), _document(RouteInfo), body=body)


def delete_route(name: str, *, why: str = "") -> Call[None]:
    """Deletes a route; its history is kept."""
    return Call("DELETE", _route(name), _nothing, params={"why": why} if why else {})


def route_history(name: str) -> Call[list[RouteEvent]]:
    """What became of a route, the newest first: who, when and why; guards among them."""
    return _get(f"{_route(name)}/history", _documents(RouteEvent))


def route_shadow(name: str, *, limit: int = 100) -> Call[list[ShadowRecord]]:
    """What a route's shadow answered beside what was returned, the newest first."""
    return _get(f"{_route(name)}/shadow", _documents(ShadowRecord), limit=limit)


def explain(
    text: str, *, adapter: str | None = None, task: str | None = None, key: str | None = None
) -> Call[Explanation]:
    """How a request would be routed, step by step; nothing is answered. Without adapter and task: by its text."""
    body = _request(ExplainRequest, text=text, adapter=adapter, task=task, key=key)
    return Call("POST", "/api/explain", _document(Explanation), body=body, repeatable=True)


def delete_adapter(name: str) -> Call[None]:
    """Deletes an adapter with all its versions."""
    return Call("DELETE", f"/api/adapters/{_segment(name)}", _nothing)


def delete_version(name: str, number: int) -> Call[None]:
    """Deletes one version of an adapter."""
    return Call("DELETE", f"/api/adapters/{_segment(name)}/versions/{number}", _nothing)


def download_adapter(ref: str) -> StreamCall[bytes]:
    """A zip archive of the files of a version, in PEFT's layout, piece by piece."""
    return StreamCall("GET", f"/api/adapters/{_segment(ref)}/archive", "bytes", _bytes)


def merge_adapters(
    adapters: Sequence[str],
    *,
    name: str,
    weights: Sequence[float] = (),
    method: str = "linear",
    density: float | None = None,
    seed: int | None = None,
) -> Call[VersionInfo]:
    """Publishes one adapter made of several (``linear``, ``cat``, ``ties`` or ``dare``) as the next version of
    ``name``."""
    options = {"weights": list(weights), "method": method, "density": density, "seed": seed}
    body = _request(MergeRequest, name=name, adapters=list(adapters), **options)
    return Call("POST", "/api/merges", _document(VersionInfo), body=body)


def download_merged(ref: str) -> StreamCall[bytes]:
    """The base model with an adapter taken into its weights: a zip archive of a checkpoint for transformers."""
    return StreamCall("GET", f"/api/adapters/{_segment(ref)}/merged", "bytes", _bytes)


def download_bundle(ref: str) -> StreamCall[bytes]:
    """A version with its lineage and the hash of each file, as an archive that ``import_bundle`` takes."""
    return StreamCall("GET", f"/api/adapters/{_segment(ref)}/bundle", "bytes", _bytes)


def import_bundle(
    bundle: str | os.PathLike[str], *, name: str | None = None, progress: Progress | None = None
) -> Call[VersionInfo]:
    """Publishes a bundle of another server as the next version of its adapter, or of ``name``; it verifies every
    hash."""
    upload = Upload({"name": name} if name is not None else {}, _existing(bundle), progress)
    return Call("POST", "/api/bundles", _document(VersionInfo), upload=upload)


def predict(
    adapter: str | None,
    input: str | JsonObject,  # noqa: A002 - the name of the field in the API
    *,
    task: str | None = None,
    key: str | None = None,
    sampling: SamplingOverrides | None = None,
) -> Call[PredictResponse]:
    """One answer. ``input`` is plain text, or a request by the task's schema.

    Without an adapter the server routes by ``task``, with the adapter ``auto`` by the text. Requests with the same
    ``key`` go to the same target of a route.
    """
    body = prediction(adapter, input, task=task, key=key, sampling=sampling)
    return Call("POST", "/api/predict", _document(PredictResponse), body=body, repeatable=True)


def predict_stream(
    adapter: str | None,
    input: str | JsonObject,  # noqa: A002 - the name of the field in the API
    *,
    task: str | None = None,
    key: str | None = None,
    sampling: SamplingOverrides | None = None,
) -> StreamCall[PredictEvent]:
    """The same answer as it is written: deltas, then the result. An error in between is raised."""
    body = prediction(adapter, input, task=task, key=key, sampling=sampling).model_copy(update={"stream": True})
    return StreamCall("POST", "/api/predict", "sse", _predict_event, body=body)


def predict_bulk(items: Iterable[PredictRequest]) -> StreamCall[BulkLine]:
    """Many answers, in the order they are ready; each line names its item by index (see ``prediction``)."""
    body = _request(BulkRequest, items=list(items))
    return StreamCall("POST", "/api/predict/bulk", "ndjson", _document(BulkLine), body=body)


def evaluate(
    adapter: str,
    *,
    dataset: str,
    task: str | None = None,
    against: str | None = None,
    limit: int | None = None,
) -> StreamCall[EvaluationEvent]:
    """Measures an adapter on a dataset: progress, then a summary. An error in between is raised."""
    body = _request(EvaluationRequest, adapter=adapter, dataset=dataset, task=task, against=against, limit=limit)
    return StreamCall("POST", "/api/evaluations", "ndjson", _evaluation_event, body=body)


def create_key(
    *,
    name: str,
    scopes: Sequence[str],
    adapters: Sequence[str] = (),
    tenant: str | None = None,
    expires_at: datetime | None = None,
    limits: Mapping[str, int | None] | None = None,
) -> Call[NewKey]:
    """Makes a key; the answer is the only place where it is shown. Limited to ``adapters`` (names, ``*`` stands for
    anything) or to a ``tenant``'s, it sees nothing else. ``limits`` has fields of ``Limits``."""
    body = _request(
        KeyCreate,
        name=name,
        scopes=list(scopes),
        adapters=list(adapters),
        tenant=tenant,
        expires_at=expires_at,
        **({"limits": dict(limits)} if limits else {}),
    )
    return Call("POST", "/api/keys", _document(NewKey), body=body)


def keys() -> Call[list[KeyInfo]]:
    """Every key without its secret, the oldest first, revoked ones included."""
    return _get("/api/keys", _documents(KeyInfo))


def revoke_key(id: str) -> Call[KeyInfo]:  # noqa: A002
    """Ends a key at once; what it has in flight ends within a second."""
    return Call("DELETE", f"/api/keys/{_segment(id)}", _document(KeyInfo), repeatable=True)


def limit_key(id: str, **limits: int | None) -> Call[KeyInfo]:  # noqa: A002
    """Changes how much a key may ask, by fields of ``Limits``: 0 is without a limit, None what the server is set to.
    Those that are left out stay as they are."""
    body = _limits(limits)
    return Call("POST", f"/api/keys/{_segment(id)}/limits", _document(KeyInfo), body=body, repeatable=True)


def limit_adapter(name: str, **limits: int | None) -> Call[AdapterInfo]:
    """Changes how much an adapter may be asked by all keys together; see ``limit_key``."""
    body = _limits(limits)
    return Call("POST", f"/api/adapters/{_segment(name)}/limits", _document(AdapterInfo), body=body, repeatable=True)


def audit(*, target: str | None = None, before: int | None = None, limit: int | None = None) -> Call[list[AuditItem]]:
    """The newest changes first; of one ``target``, and before the entry number ``before``."""
    return _get("/api/audit", _documents(AuditItem), target=target, before=before, limit=limit)


def prediction(
    adapter: str | None,
    input: str | JsonObject,  # noqa: A002 - the name of the field in the API
    *,
    task: str | None = None,
    key: str | None = None,
    sampling: SamplingOverrides | None = None,
) -> PredictRequest:
    """One item for ``predict_bulk``.

    Raises:
        UsageError: neither adapter nor task is named.
    """
    fields: dict[str, Any] = {"adapter": adapter, "task": task, "key": key}
    fields["text" if isinstance(input, str) else "input"] = input
    if sampling is not None:
        fields["sampling"] = sampling
    return _request(PredictRequest, **fields)


def _get(path: str, parse: Callable[[str], M | list[M]], **params: str | int | None) -> Call[Any]:
    given = {key: value for key, value in params.items() if value is not None}
    return Call("GET", path, parse, params=given, repeatable=True)


def _document(model: type[M]) -> Callable[[str | bytes], M]:
    return model.model_validate_json


def _documents(model: type[M]) -> Callable[[str | bytes], list[M]]:
    return lambda text: TypeAdapter(list[model]).validate_json(text)  # type: ignore[valid-type]


def _nothing(_: str) -> None:
    return None


def _bytes(piece: str | bytes) -> bytes:
    return piece if isinstance(piece, bytes) else piece.encode()


def _predict_event(text: str | bytes) -> PredictEvent:
    event = PredictEvent.model_validate_json(text)
    if event.problem is not None:
        raise error_of(event.problem)
    return event


def _evaluation_event(text: str | bytes) -> EvaluationEvent:
    event = EvaluationEvent.model_validate_json(text)
    if event.problem is not None:
        raise error_of(event.problem)
    return event


def _gate_event(text: str | bytes) -> GateEvent:
    event = GateEvent.model_validate_json(text)
    if event.problem is not None:
        raise error_of(event.problem)
    return event


def _request(model: type[M], **fields: Any) -> M:
    try:
        return model(**{name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{place}: {message}" if place else message) from None


def _limits(changed: Mapping[str, int | None]) -> LimitsChange:
    body = _request(LimitsChange, **changed)
    # None is a change here: back to what the server is set to.
    return body.model_copy(update={name: None for name, value in changed.items() if value is None})


def _pin(name: str, number: int) -> str:
    return f"/api/adapters/{_segment(name)}/versions/{number}/pin"


def _route(name: str) -> str:
    return f"/api/routes/{_segment(name)}"


def _alias(name: str, alias: str) -> str:
    return f"/api/adapters/{_segment(name)}/aliases/{_segment(alias)}"


def _segment(name: str) -> str:
    """A name as one segment of a path.

    Raises:
        UsageError: it is empty, would be read as a step within the path, or can't be encoded.
    """
    if name in ("", ".", ".."):
        raise UsageError(f"`{name}` is no name")
    with encodable():
        return quote(name, safe="@")


def _dataset_form(
    files: Paths,
    task: str,
    format: str | None,  # noqa: A002
    skip_bad: bool,
    progress: Progress | None,
) -> Upload:
    fields = {"task": task, "skip_bad": "true" if skip_bad else "false"}
    if format is not None:
        fields["format"] = format
    return Upload(fields, _existing(files), progress)


def _existing(files: Paths) -> tuple[Path, ...]:
    """The files to send: those named, and for a folder those directly in it that are not hidden.

    Raises:
        UsageError: a file is missing, a folder is empty, or two files have the same name.
    """
    named = [files] if isinstance(files, str | os.PathLike) else files
    found: list[Path] = []
    for path in map(Path, named):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
            if not inside:
                raise UsageError(f"{path}: no files in this folder")
            found.extend(inside)
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"{path}: no such file")
    names: dict[str, Path] = {}
    for path in found:
        other = names.setdefault(path.name, path)
        if other is not path:
            raise UsageError(f"{path} and {other} have the same name; a dataset's file names must differ")
    if not found:
        raise UsageError("no files given")
    return tuple(found)
