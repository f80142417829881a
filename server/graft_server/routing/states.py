"""What a task keeps with an adapter (``task_state.json``), read once a version and kept while it is in use."""

from __future__ import annotations

import threading
from collections import OrderedDict

from pydantic import BaseModel, ValidationError

from graft_plugins.task import AnyTask
from graft_server.problems import ProblemError
from graft_server.registry.records import VersionRecord

STATE_FILE = "task_state.json"


class StateCache:
    """The states of the versions used last. Thread-safe; keyed by engine id, which is never reused."""

    def __init__(self, capacity: int = 256) -> None:
        self._capacity = capacity
        self._states: OrderedDict[int, BaseModel] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, version: VersionRecord, task: AnyTask) -> BaseModel:
        """The state that was kept with a version.

        Raises:
            ProblemError: the version's state is not one of the task.
        """
        with self._lock:
            if version.engine_id in self._states:
                self._states.move_to_end(version.engine_id)
                return self._states[version.engine_id]
        file = version.path / STATE_FILE
        if not file.exists():
            return self.empty(task)
        try:
            state: BaseModel = task.state_model.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise ProblemError(
                "adapter-unloadable",
                f"{STATE_FILE} of {version.ref} is no state of task {task.name!r}: {error.errors()[0]['msg']}",
            ) from error
        with self._lock:
            self._states[version.engine_id] = state
            while len(self._states) > self._capacity:
                self._states.popitem(last=False)
        return state

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
