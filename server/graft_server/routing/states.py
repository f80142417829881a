"""What a task keeps with an adapter (``task_state.json``), read once a version and kept while it is in use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ValidationError

from graft_plugins.task import AnyTask
from graft_server.problems import ProblemError, as_problem
from graft_server.registry.errors import CorruptArtefactError, StorageFullError, StoreUnavailableError
from graft_server.registry.records import VersionRecord

STATE_FILE = "task_state.json"


class Files(Protocol):
    """Has a version's files at hand, as ``Registry.files``."""

    def __call__(self, version: VersionRecord, /, *, wait: bool) -> AbstractContextManager[Path]: ...


def in_place(version: VersionRecord, /, *, wait: bool) -> AbstractContextManager[Path]:
    """Where nothing has to be fetched."""
    return nullcontext(version.path)


#: What a state counts at least: its object is larger than its JSON where that is short.
_LEAST_BYTES = 1 << 10


class StateCache:
    """The states of the versions used last, as many as have ``budget`` bytes of JSON: a catalogue is large, most states
    are a few words. The newest is always kept. Thread-safe; keyed by engine id, which is never reused."""

    def __init__(self, budget: int = 32 << 20, *, files: Files = in_place) -> None:
        self._budget = budget
        self._files = files
        self._bytes = 0
        self._states: OrderedDict[int, tuple[BaseModel, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, version: VersionRecord, task: AnyTask) -> BaseModel:
        """The state that was kept with a version.

        Raises:
            NotFetchedError: the version's files have to be fetched first.
            ProblemError: they can't be, or the version's state is not one of the task.
        """
        with self._lock:
            if version.engine_id in self._states:
                self._states.move_to_end(version.engine_id)
                return self._states[version.engine_id][0]
        try:
            with self._files(version, wait=False) as folder:
                document = (folder / STATE_FILE).read_bytes()
            state: BaseModel = task.state_model.model_validate_json(document)
        except FileNotFoundError:
            return self.empty(task)
        except (CorruptArtefactError, StoreUnavailableError, StorageFullError) as error:
            raise as_problem(error) or error from error
        except ValidationError as error:
            raise ProblemError(
                "adapter-unloadable",
                f"{STATE_FILE} of {version.ref} is no state of task {task.name!r}: {error.errors()[0]['msg']}",
            ) from error
        self._keep(version.engine_id, state, max(len(document), _LEAST_BYTES))
        return state

    def _keep(self, engine_id: int, state: BaseModel, size: int) -> None:
        with self._lock:
            _, known = self._states.pop(engine_id, (None, 0))
            self._states[engine_id] = (state, size)
            self._bytes += size - known
            while self._bytes > self._budget and len(self._states) > 1:
                _, (_, dropped) = self._states.popitem(last=False)
                self._bytes -= dropped

    def empty(self, task: AnyTask) -> BaseModel:
        """The state of a task without an adapter.

        Raises:
            ProblemError: the task can't do anything before it has seen training data.
        """
        try:
            state: BaseModel = task.state_model()
        except ValidationError as error:
            raise ProblemError(
                "invalid-request",
                f"task {task.name!r} keeps a state that only training makes; name an adapter of it",
            ) from error
        return state
