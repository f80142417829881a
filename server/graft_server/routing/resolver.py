"""From what a request names to one adapter version and its task: a name, ``name@N``, ``base``, a task, or ``auto``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel

from graft_plugins.errors import UnknownNameError
from graft_plugins.manager import PluginHost
from graft_plugins.router import RouteCandidate
from graft_plugins.task import AnyTask
from graft_server.problems import ProblemError
from graft_server.registry import Registry
from graft_server.registry.records import VersionRecord
from graft_server.routing.states import StateCache

log = logging.getLogger(__name__)

#: What the base model does where nothing else is named.
DEFAULT_TASK = "chat"


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes. ``version`` is ``None`` for the base model; ``note`` says how ``auto`` decided."""

    task: AnyTask
    state: BaseModel
    version: VersionRecord | None = None
    note: str | None = None

    @property
    def ref(self) -> str:
        return self.version.ref if self.version else "base"


class Resolver:
    """Resolves names against the registry, so it always sees what was published last. Blocking: call it in a
    thread."""

    def __init__(self, registry: Registry, host: PluginHost, *, base_name: Callable[[], str] = lambda: "base") -> None:
        self._registry = registry
        self._host = host
        self._base_name = base_name
        self._states = StateCache()

    def resolve(self, adapter: str | None, task: str | None = None, text: str = "") -> Route:
        """The route of a request; ``text`` is what a router sees where ``adapter`` is ``auto``.

        Raises:
            ProblemError: an unknown adapter, version or task (with the nearest name), or an adapter that serves
                another task than the one named.
        """
        if adapter == "auto":
            return self._choose(task, text)
        if adapter is not None and adapter in ("base", self._base_name()):
            return self._base(task or DEFAULT_TASK)
        if adapter is not None:
            return self._adapter(adapter, task)
        if task is None:
            raise ProblemError("invalid-request", "name an adapter or a task")
        self._host.task(task)
        version = self._registry.latest_for_task(task)
        if version is None:
            note = f"no adapter serves task {task!r} yet, so the base model answers"
            return self._base(task, note=note)
        return self._version(version)

    def _adapter(self, ref: str, task: str | None) -> Route:
        version = self._registry.resolve(ref)
        if task is not None and task != version.lineage.task:
            self._host.task(task)
            raise ProblemError("task-mismatch", f"adapter {ref!r} serves task {version.lineage.task!r}, not {task!r}")
        return self._version(version)

    def _version(self, version: VersionRecord, *, note: str | None = None) -> Route:
        try:
            task = self._host.task(version.lineage.task)
        except UnknownNameError as error:
            raise ProblemError(
                "task-missing",
                f"adapter {version.ref} needs task {version.lineage.task!r}, which no loaded plugin provides",
            ) from error
        return Route(task=task, state=self._states.get(version, task), version=version, note=note)

    def _base(self, name: str, *, note: str | None = None) -> Route:
        task = self._host.task(name)
        return Route(task=task, state=self._states.empty(task), note=note)

    def _choose(self, task: str | None, text: str) -> Route:
        if task is not None:
            self._host.task(task)
        adapters = {record.name: record for record in self._registry.adapters(task)}
        candidates = [
            RouteCandidate(name=record.name, task=record.task, description=self._describe(record.task))
            for record in adapters.values()
        ]
        for router in self._host.routers.values() if candidates else ():
            try:
                choice = router.choose(text, candidates)
                if choice is None:
                    continue
                version = adapters[choice.name].latest
            # A router is foreign code: whatever it does, the request still gets an answer.
            except Exception:
                log.exception("router %s failed; the next one is asked", router.name)
                continue
            note = f"router {router.name} chose {version.ref} with confidence {choice.confidence:.2f}"
            return self._version(version, note=note)
        return self._base(task or DEFAULT_TASK, note="no router chose an adapter, so the base model answers")

    def _describe(self, task: str) -> str:
        try:
            return self._host.task(task).description
        except UnknownNameError:
            return ""
