"""The plugin host: finds plugins, lets them register through pluggy, and goes on without the faulty ones.

Built-in plugins, plugins that the server brings and third-party entry points (group ``graftwork``) all take
the same path. Each hook of each plugin is called on its own, so that one plugin's exception never reaches
another, and what it registers is kept only if the hook returns.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from graft_plugins import hookspecs
from graft_plugins.builtin import BUILTIN_PLUGINS
from graft_plugins.errors import UnknownNameError, nearest_name
from graft_plugins.faults import PluginFault, describe, place_of_callable, place_of_error
from graft_plugins.method import AdapterMethod
from graft_plugins.reader import DatasetReader
from graft_plugins.registration import RegistrationError, check_method, check_reader, check_router, check_task
from graft_plugins.router import Router
from graft_plugins.task import AnyTask

PROJECT = "graftwork"
ENTRY_POINT_GROUP = "graftwork"

#: An importable module's dotted name, a module, or an object with hook implementations.
ModuleOrObject = str | ModuleType | object

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """A plugin that takes part: what it registered and what it observes."""

    name: str
    version: str | None
    built_in: bool
    tasks: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()
    observes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A plugin that has not been imported yet. ``load`` may raise whatever the plugin raises."""

    name: str
    version: str | None
    built_in: bool
    load: Callable[[], object]


class PluginHost:
    """The plugins of one process and everything they registered, by name."""

    def __init__(self) -> None:
        self.tasks: dict[str, AnyTask] = {}
        self.readers: dict[str, DatasetReader] = {}
        self.methods: dict[str, AdapterMethod] = {}
        self.routers: dict[str, Router] = {}
        self.faults: list[PluginFault] = []
        self.plugins: list[PluginRecord] = []
        self._providers: dict[tuple[str, str], str] = {}
        self._observers: dict[str, list[tuple[str, object]]] = {}
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        #: Registration hook -> kind, check of what is registered, where it is kept.
        self._kinds: dict[str, tuple[str, Callable[[Any], None], dict[str, Any]]] = {
            "register_tasks": ("task", check_task, self.tasks),
            "register_readers": ("reader", check_reader, self.readers),
            "register_methods": ("method", check_method, self.methods),
            "register_routers": ("router", check_router, self.routers),
        }

    @classmethod
    def load(
        cls,
        only: str = "*",
        builtins: Sequence[ModuleOrObject] = BUILTIN_PLUGINS,
        extra: Sequence[tuple[str, object]] = (),
        entry_points: bool = True,
    ) -> PluginHost:
        """Load plugins: ``builtins``, then ``extra`` (name, plugin) pairs, then installed entry points.

        ``only`` restricts the entry points: ``*`` is all of them, otherwise a comma-separated list of names, and
        an empty text is none. Never raises for a plugin's sake; see ``faults``.
        """
        host = cls()
        own_version = _version_of(PROJECT)
        for plugin in builtins:
            name = plugin if isinstance(plugin, str) else _name_of(plugin)
            host._add(_Candidate(name, own_version, True, partial(_import, plugin)))
        for name, plugin in extra:
            host._add(_Candidate(name, own_version, True, partial(_import, plugin)))
        if entry_points:
            for candidate in host._installed(only):
                host._add(candidate)
        return host

    def task(self, name: str) -> AnyTask:
        """The task of this name.

        Raises:
            UnknownNameError: with the nearest name that exists.
        """
        return _get("task", name, self.tasks)

    def reader(self, name: str) -> DatasetReader:
        """The dataset reader of this name; raises ``UnknownNameError``."""
        return _get("format", name, self.readers)

    def method(self, name: str) -> AdapterMethod:
        """The adapter method of this name; raises ``UnknownNameError``."""
        return _get("method", name, self.methods)

    def router(self, name: str) -> Router:
        """The router of this name; raises ``UnknownNameError``."""
        return _get("router", name, self.routers)

    def provider(self, kind: str, name: str) -> PluginRecord:
        """The plugin that registered the ``task``, ``reader``, ``method`` or ``router`` of this name.

        Raises:
            UnknownNameError: nothing of this kind has this name.
        """
        plugin = self._providers.get((kind, name))
        if plugin is None:
            raise UnknownNameError(kind, name, [known for k, known in self._providers if k == kind])
        return next(record for record in self.plugins if record.name == plugin)

    def notify(self, hook_name: str, payload: Mapping[str, Any]) -> None:
        """Tell every observer of ``job_finished``, ``version_published`` or ``request_served``.

        An observer that raises is logged with its plugin, hook and file; the others are still told.
        """
        for name, plugin in self._observers.get(hook_name, ()):
            call = self._caller(plugin, hook_name)
            try:
                call(**{_payload_name(call): payload})
            except Exception as error:
                file, line = place_of_error(error, self._hooks_of(plugin)[hook_name])
                logger.exception("plugin %s: hook %s failed at %s:%s", name, hook_name, file, line)

    # Loading

    def _installed(self, only: str) -> list[_Candidate]:
        found = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)
        if only.strip() != "*":
            wanted = [name.strip() for name in only.split(",") if name.strip()]
            known = {point.name for point in found}
            for name in wanted:
                if name not in known:
                    near = nearest_name(name, known)
                    hint = f"; did you mean {near!r}?" if near else ""
                    self._fault(name, None, (None, None), f"no installed plugin has this name{hint}")
            found = [point for point in found if point.name in wanted]
        return [_Candidate(point.name, _dist_version(point), False, point.load) for point in found]

    def _add(self, candidate: _Candidate) -> None:
        name = candidate.name
        if self._pluggy.has_plugin(name):
            self._fault(name, None, (None, None), "another plugin with this name is already loaded")
            return
        try:
            plugin = candidate.load()
        except (Exception, SystemExit) as error:
            self._fault(name, None, place_of_error(error, None), f"can't be imported: {describe(error)}")
            return
        hooks = self._hooks_of(plugin)
        if not hooks:
            self._fault(name, None, place_of_callable(plugin), "implements no hook; mark functions with @hookimpl")
            return
        if not self._hooks_are_sound(name, plugin, hooks):
            return
        registered = {hook: self._call_registration(name, plugin, hook) for hook in self._kinds if hook in hooks}
        observed = [hook for hook in hooks if hook not in self._kinds]
        for hook in observed:
            self._observers.setdefault(hook, []).append((name, plugin))
        self.plugins.append(
            PluginRecord(
                name=name,
                version=candidate.version,
                built_in=candidate.built_in,
                tasks=registered.get("register_tasks", ()),
                readers=registered.get("register_readers", ()),
                methods=registered.get("register_methods", ()),
                routers=registered.get("register_routers", ()),
                observes=tuple(observed),
            )
        )

    def _hooks_of(self, plugin: object) -> dict[str, Callable[..., Any]]:
        """Hook name -> function, for everything the plugin marked with ``@hookimpl``."""
        hooks: dict[str, Callable[..., Any]] = {}
        for attribute in dir(plugin):
            options = self._pluggy.parse_hookimpl_opts(plugin, attribute)
            if options is not None:
                hooks[options.get("specname") or attribute] = getattr(plugin, attribute)
        return hooks

    def _hooks_are_sound(self, name: str, plugin: object, hooks: Mapping[str, Callable[..., Any]]) -> bool:
        known = [hook for hook in vars(hookspecs) if hasattr(self._pluggy.hook, hook)]
        for hook, function in hooks.items():
            if hook not in known:
                near = nearest_name(hook, known)
                hint = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
                self._fault(name, hook, place_of_callable(function), f"there is no such hook; {hint}")
                return False
            if inspect.iscoroutinefunction(function):
                self._fault(name, hook, place_of_callable(function), "hooks are plain functions, not async ones")
                return False
        try:
            self._pluggy.register(plugin, name)
        except (pluggy.PluginValidationError, ValueError) as error:
            message = str(error)
            at_fault = next((hook for hook in hooks if repr(hook) in message), None)
            place = place_of_callable(hooks[at_fault] if at_fault else plugin)
            self._fault(name, at_fault, place, " ".join(message.split()))
            return False
        return True

    def _call_registration(self, plugin_name: str, plugin: object, hook: str) -> tuple[str, ...]:
        """Call one registration hook; keep what it registered if it returns, and nothing otherwise."""
        kind, check, kept = self._kinds[hook]
        staged: dict[str, Any] = {}

        def register(thing: Any) -> None:
            check(thing)
            owner = self._providers.get((kind, thing.name), plugin_name if thing.name in staged else None)
            if owner is not None:
                raise RegistrationError(
                    f"{kind} {thing.name!r} of plugin {plugin_name!r} is already registered by {owner!r}"
                )
            staged[thing.name] = thing

        try:
            self._caller(plugin, hook)(register=register)
        except (Exception, SystemExit) as error:
            place = place_of_error(error, self._hooks_of(plugin)[hook])
            self._fault(plugin_name, hook, place, describe(error))
            return ()
        kept.update(staged)
        self._providers.update(dict.fromkeys(((kind, name) for name in staged), plugin_name))
        return tuple(staged)

    def _caller(self, plugin: object, hook: str) -> pluggy.HookCaller:
        """A caller of this hook in this plugin only, so that its errors are its own."""
        others = [other for other in self._pluggy.get_plugins() if other is not plugin]
        return self._pluggy.subset_hook_caller(hook, others)

    def _fault(self, plugin: str, hook: str | None, place: tuple[str | None, int | None], error: str) -> None:
        fault = PluginFault(plugin=plugin, hook=hook, file=place[0], line=place[1], error=error)
        self.faults.append(fault)
        logger.warning("%s", fault)


def _get(kind: str, name: str, things: Mapping[str, T]) -> T:
    try:
        return things[name]
    except KeyError:
        raise UnknownNameError(kind, name, things) from None


def _payload_name(call: pluggy.HookCaller) -> str:
    """Observer hooks take exactly one argument, named in their specification."""
    assert call.spec is not None
    return call.spec.argnames[0]


def _import(plugin: ModuleOrObject) -> object:
    return importlib.import_module(plugin) if isinstance(plugin, str) else plugin


def _name_of(plugin: object) -> str:
    return getattr(plugin, "__name__", None) or type(plugin).__name__


def _version_of(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _dist_version(point: EntryPoint) -> str | None:
    return point.dist.version if point.dist is not None else None
