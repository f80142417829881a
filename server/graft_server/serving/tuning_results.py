"""The figures of a fine-tuning job that has succeeded, as the file that OpenAI's service leaves of one."""

from __future__ import annotations

import csv

from graft_server.registry import Registry
from graft_server.registry.documents import job_document
from graft_server.registry.records import JobRecord

_COLUMNS = ("step", "train_loss", "valid_loss")


def keep_figures(registry: Registry, job: JobRecord) -> None:
    """Store the losses of the steps that were told, in nats per answer token, for whoever asked for the job under
    ``/v1``; other jobs leave no file. Blocking.

    Raises:
        StorageFullError: no space is left.
    """
    request = registry.documents.by_ids("fine-tuning", [job_document(job.id)]).get(job_document(job.id))
    if request is None:
        return
    path = job.folder / "step_metrics.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(_COLUMNS)
        for event in reversed(registry.recent_events(job.id, kind="metrics")):
            if event.data["phase"] == "training":
                rows.writerow([event.data["step"], event.data["loss"], event.data["eval_loss"]])
    file = registry.kept_files.add(path, filename=path.name, purpose="fine-tune-results", like=request)
    path.unlink()
    registry.documents.update("fine-tuning", request.id, result_files=[file.id])
