"""Bundles: a version with its lineage on its way from one server to another, every file with its hash."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from graft_client.schemas.adapters import VersionInfo
from graft_client.schemas.common import RequestSchema, Schema

#: The file of a bundle that tells what else is in it.
MANIFEST = "bundle.json"


class BundledFile(Schema):
    """One file of a bundle."""

    name: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"[0-9a-f]{64}")


class BundleManifest(Schema):
    """What is in a bundle. ``digest`` covers names, sizes and hashes of all files."""

    format: int = 1
    version: VersionInfo
    digest: str
    files: list[BundledFile] = Field(min_length=1)


class MergeRequest(RequestSchema):
    """Make one adapter of several."""

    name: str = Field(description="The adapter to publish the result under.")
    adapters: list[str] = Field(min_length=2, max_length=16)
    weights: list[float] = Field([], description="One an adapter; without them, all the same, 1 in sum.")
    method: Literal["linear", "cat", "ties", "dare"] = "linear"
    density: float = Field(0.5, gt=0, le=1, description="For `ties` and `dare`: the share of values that is kept.")
    seed: int = Field(0, ge=0, lt=2**32, description="For `dare`, which drops values by chance.")
