"""Faults of plugins: which plugin, which hook, which file and line, and what happened."""

from __future__ import annotations

import importlib
import inspect
import os
import traceback
from dataclasses import dataclass

import pluggy

from graft_plugins.registration import RegistrationError

Place = tuple[str | None, int | None]

#: Frames below these folders and files belong to the machinery, never to the plugin at fault.
_MACHINERY = (
    os.path.dirname(pluggy.__file__),
    os.path.join(os.path.dirname(__file__), "manager.py"),
    os.path.join(os.path.dirname(__file__), "registration.py"),
    os.path.dirname(importlib.__file__),
    "<frozen importlib",
)


@dataclass(frozen=True, slots=True)
class PluginFault:
    """A plugin, or one hook of it, that was left out."""

    plugin: str
    hook: str | None
    file: str | None
    line: int | None
    error: str

    def __str__(self) -> str:
        hook = f", hook {self.hook}" if self.hook else ""
        place = f" ({self.file}:{self.line})" if self.file else ""
        return f"plugin {self.plugin}{hook}{place}: {self.error}"


def describe(error: BaseException) -> str:
    """An exception in one line; what ``register`` refused is already a sentence."""
    if isinstance(error, RegistrationError):
        return str(error)
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def place_of_callable(thing: object) -> Place:
    """File and line of a function, class or module, or of an object's class."""
    for candidate in (inspect.unwrap(thing) if callable(thing) else thing, type(thing)):
        try:
            file = inspect.getsourcefile(candidate) or inspect.getfile(candidate)  # type: ignore[arg-type]
        except TypeError:
            continue
        if inspect.ismodule(candidate):
            return file, 1
        try:
            return file, inspect.getsourcelines(candidate)[1]  # type: ignore[arg-type]
        except (OSError, TypeError):
            return file, None
    return None, None


def place_of_error(error: BaseException, hook: object | None) -> Place:
    """Where a plugin went wrong.

    That is the innermost frame in the file of its ``hook``; where the hook is not known or not in the traceback,
    it is the innermost frame outside the machinery of importing and of calling hooks.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno
    hook_place = place_of_callable(hook) if hook is not None else (None, None)
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(_MACHINERY)
    ]
    own = [place for place in frames if place[0] == hook_place[0]]
    if own:
        return own[-1]
    return frames[-1] if frames else hook_place
