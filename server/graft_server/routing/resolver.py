"""From what a request names to one adapter version and its task: a name, ``name@N``, ``name@alias``, a route, ``base``,
a task, or ``auto``."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from pydantic import BaseModel

from graft_client.schemas.predict import AutoChoice
from graft_plugins.errors import UnknownNameError
from graft_plugins.manager import PluginHost
from graft_plugins.task import AnyTask
from graft_server.problems import ProblemError
from graft_server.registry import Registry
from graft_server.registry.records import RouteRecord, VersionRecord
from graft_server.routing.auto.choice import AutoRouter
from graft_server.routing.remembered import Remembered
from graft_server.routing.states import StateCache
from graft_server.routing.weights import pick

log = logging.getLogger(__name__)

#: What the base model does where nothing else is named.
DEFAULT_TASK = "chat"

#: Told one step of a decision.
Say = Callable[[str], None]


def _silent(_: str) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Standby:
    """A target that answers only if it comes to that: nothing of its files is wanted before ``route`` is called, which
    raises as ``Resolver.resolve``. Blocking."""

    ref: str
    route: Callable[[], Route]


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes. ``version`` is ``None`` for the base model; ``note`` says how it was decided where the
    caller left it open. ``via`` is the route of the registry that led here, ``fallback`` who answers where the version
    can't be loaded, ``shadow`` who gets a copy, and ``choice`` how sure ``auto`` was."""

    task: AnyTask
    state: BaseModel
    version: VersionRecord | None = None
    note: str | None = None
    via: RouteRecord | None = None
    fallback: tuple[Standby, ...] = ()
    shadow: Standby | None = None
    choice: AutoChoice | None = None

    @property
    def ref(self) -> str:
        return self.version.ref if self.version else "base"


class Resolver:
    """Resolves names against the registry, so it always sees what was published last. While its database is away, a
    name that was resolved before leads where it led the last time. Blocking: call it in a thread."""

    def __init__(
        self,
        registry: Registry,
        host: PluginHost,
        states: StateCache,
        auto: AutoRouter,
        *,
        base_name: Callable[[], str] = lambda: "base",
    ) -> None:
        self._registry = registry
        self._remembered = Remembered()
        self._host = host
        self._states = states
        self._auto = auto
        self._base_name = base_name

    def resolve(
        self,
        adapter: str | None,
        task: str | None = None,
        text: str = "",
        *,
        key: str | None = None,
        say: Say = _silent,
    ) -> Route:
        """The route of a request; ``text`` is what a router sees where ``adapter`` is ``auto``. Requests with the same
        ``key`` go to the same target of a route with weights. ``say`` is told each step of the decision.

        Raises:
            ProblemError: an unknown adapter, version or task (with the nearest name), or an adapter that serves
                another task than the one named.
        """
        if adapter == "auto":
            say("the request leaves the adapter to its text (`auto`)")
            return self._choose(task, text, say)
        if adapter is not None and adapter in ("base", self._base_name()):
            say("the request names the base model")
            return self._base(task or DEFAULT_TASK)
        if adapter is not None:
            return self._named(adapter, task, key, say)
        if task is None:
            raise ProblemError("invalid-request", "name an adapter or a task")
        self._host.task(task)
        record = self._remembered(("route", task), lambda: self._registry.routes.find(task))
        if record is not None and record.task == task:
            say(f"the request names task {task}, which has a route")
            return self._weighted(record, key, say)
        version = self._remembered(("task", task), lambda: self._registry.latest_for_task(task))
        if version is None:
            note = f"no adapter serves task {task!r} yet, so the base model answers"
            say(note)
            return self._base(task, note=note)
        say(f"the request names task {task}, which has no route: {version.ref} is its version published last")
        return self._version(version)

    def _named(self, ref: str, task: str | None, key: str | None, say: Say) -> Route:
        target = self._remembered(("name", ref), lambda: self._registry.target(ref))
        serves = target.task if isinstance(target, RouteRecord) else target.lineage.task
        if task is not None and task != serves:
            self._host.task(task)
            kind = "route" if isinstance(target, RouteRecord) else "adapter"
            raise ProblemError("task-mismatch", f"{kind} {ref!r} serves task {serves!r}, not {task!r}")
        if isinstance(target, RouteRecord):
            say(f"{ref!r} is a route")
            return self._weighted(target, key, say)
        say(f"{ref!r} stands for {target.ref}")
        return self._version(target)

    def _weighted(self, record: RouteRecord, key: str | None, say: Say) -> Route:
        spec = record.spec
        chosen = pick(record.name, spec.targets, secrets.token_hex(8) if key is None else key)
        how = "by weight" if key is None else "by the caller's key"
        note = f"route {record.name} chose {chosen.ref} {how} ({chosen.weight:g} %)"
        weights = ", ".join(f"{target.ref} {target.weight:g} %" for target in spec.targets)
        say(f"route {record.name} (revision {record.revision}) has {weights}")
        say(note)
        fallback = [
            self._standby(record, ref, f"{note}; it could not be loaded, so {ref} answers") for ref in spec.fallback
        ]
        try:
            route = self._target(record, chosen.ref, note=note)
        except ProblemError as error:
            log.warning("route %s: %s can't be served: %s", record.name, chosen.ref, error)
            for number, standby in enumerate(fallback, start=1):
                try:
                    route = standby.route()
                except ProblemError as other:
                    log.warning("route %s: fallback %s can't be served: %s", record.name, standby.ref, other)
                    continue
                say(f"{chosen.ref} can't be served ({error}), so {standby.ref} answers")
                return replace(route, via=record, fallback=tuple(fallback[number:]))
            raise
        shadow = None
        if spec.shadow is not None:
            shadow = self._standby(record, spec.shadow, f"the shadow of route {record.name}")
        return replace(route, via=record, fallback=tuple(fallback), shadow=shadow)

    def _standby(self, record: RouteRecord, ref: str, note: str) -> Standby:
        named = ref if ref == "base" else record.versions[ref].ref
        return Standby(named, partial(self._target, record, ref, note=note))

    def _target(self, record: RouteRecord, ref: str, *, note: str) -> Route:
        if ref == "base":
            return self._base(record.task, note=note)
        return self._version(record.versions[ref], note=note)

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

    def _choose(self, task: str | None, text: str, say: Say) -> Route:
        if task is not None:
            self._host.task(task)
        chosen = self._auto.choose(text, task, say)
        if chosen.version is None:
            route = self._base(task or DEFAULT_TASK, note=chosen.note)
        else:
            route = self._version(chosen.version, note=chosen.note)
        return replace(route, choice=chosen.choice)
