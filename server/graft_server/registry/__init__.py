"""Adapters, versions, datasets and jobs, and the files that belong to them: the server's only durable state."""

from __future__ import annotations

from graft_server.registry.errors import (
    ConflictError,
    CorruptArtefactError,
    InvalidNameError,
    NewerDatabaseError,
    RefusedArtefactError,
    RegistryError,
    StorageFullError,
    UnknownError,
)
from graft_server.registry.records import AdapterRecord, DatasetRecord, JobRecord, Lineage, VersionRecord
from graft_server.registry.registry import Registry, RegistryCounts

__all__ = [
    "AdapterRecord",
    "ConflictError",
    "CorruptArtefactError",
    "DatasetRecord",
    "InvalidNameError",
    "JobRecord",
    "Lineage",
    "NewerDatabaseError",
    "RefusedArtefactError",
    "Registry",
    "RegistryCounts",
    "RegistryError",
    "StorageFullError",
    "UnknownError",
    "VersionRecord",
]
