"""Every hook a plugin can implement. Registration hooks get a ``register`` callback, called once a thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pluggy import HookimplMarker, HookspecMarker

from graft_plugins.method import AdapterMethod
from graft_plugins.reader import DatasetReader
from graft_plugins.router import Router
from graft_plugins.task import AnyTask

hookspec = HookspecMarker("graftwork")
hookimpl = HookimplMarker("graftwork")


@hookspec
def register_tasks(register: Callable[[AnyTask], None]) -> None:
    """Register tasks, for instance translation."""


@hookspec
def register_readers(register: Callable[[DatasetReader], None]) -> None:
    """Register dataset readers, for instance for TMX files."""


@hookspec
def register_methods(register: Callable[[AdapterMethod], None]) -> None:
    """Register adapter methods, for instance LoRA."""


@hookspec
def register_routers(register: Callable[[Router], None]) -> None:
    """Register routers, which pick an adapter for requests that name none."""


@hookspec
def job_finished(job: Mapping[str, Any]) -> None:
    """A training job has succeeded, failed or been cancelled. ``job`` is the API's job document."""


@hookspec
def version_published(version: Mapping[str, Any]) -> None:
    """An adapter version can now be queried. ``version`` is the API's adapter-version document."""


@hookspec
def request_served(request: Mapping[str, Any]) -> None:
    """A request was answered: ``adapter``, ``task`` (``embeddings`` where texts were embedded), ``usage``, ``timings``
    and ``error``; never its text."""
