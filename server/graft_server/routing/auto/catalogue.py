"""The profiles of all adapters, kept in step with the registry: who is published takes part with the next request.

A profile is made once from the dataset that an adapter's latest trained version came from, and kept in the data folder
under the dataset's id, so that neither a restart nor a deleted dataset loses it. Blocking: called in a thread.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from graft_plugins.dataset import load_dataset
from graft_plugins.manager import PluginHost
from graft_plugins.task import AnyTask, Prompt, RequestError
from graft_server.registry import Registry
from graft_server.registry.records import VersionRecord
from graft_server.registry.visibility import visible
from graft_server.routing.auto.index import Match, ProfileIndex
from graft_server.routing.auto.profiles import MOST_TEXTS, Profile, profile_of
from graft_server.routing.states import StateCache

log = logging.getLogger(__name__)

FOLDER = "profiles"


@dataclass(frozen=True, slots=True)
class _Known:
    """A consistent view: the profiles up to one published version, and the tasks of their adapters."""

    newest: int
    profiles: dict[str, Profile]
    tasks: dict[str, str]
    index: ProfileIndex


class ProfileCatalogue:
    """Finds the adapters whose training texts a request resembles."""

    def __init__(self, registry: Registry, host: PluginHost, states: StateCache, folder: Path) -> None:
        self._registry = registry
        self._host = host
        self._states = states
        self._folder = folder
        self._known = _Known(0, {}, {}, ProfileIndex({}))
        self._refreshing = threading.Lock()

    def match(self, text: str, task: str | None = None) -> list[Match]:
        """Adapters by how similar ``text`` is to what they were trained on, the best first; of one task with
        ``task``. Those that the caller may not see are passed over."""
        # The catalogue is everybody's, so it is made of what nobody may be kept from.
        view, token = visible.get(), visible.set(None)
        try:
            known = self.refresh()
        finally:
            visible.reset(token)
        if task is None and view is None:
            return known.index.match(text)
        return [
            match
            for match in known.index.match(text, len(known.tasks))
            if (task is None or known.tasks[match.name] == task) and (view is None or view.allows(match.name))
        ]

    def refresh(self) -> _Known:
        """Take in what was published since the last time."""
        newest = self._registry.newest_engine_id()
        if newest == self._known.newest:
            return self._known
        with self._refreshing:
            known = self._known
            if newest <= known.newest:
                return known
            versions = {version.adapter: version for version in self._registry.trained_after(known.newest)}
            names = self._registry.adapter_names()
            profiles = {name: profile for name, profile in known.profiles.items() if name in names}
            tasks = dict(known.tasks)
            for name, version in versions.items():
                profile = self._profile(version)
                if profile is not None:
                    profiles[name], tasks[name] = profile, version.lineage.task
            self._known = _Known(newest, profiles, tasks, ProfileIndex(profiles))
            return self._known

    def _profile(self, version: VersionRecord) -> Profile | None:
        dataset = version.lineage.dataset
        if dataset is None:
            return None
        file = self._folder / f"{dataset}.npz"
        try:
            return Profile.load(file)
        except (OSError, ValueError):
            pass  # not made yet, or damaged
        try:
            profile = profile_of(self._texts(version, dataset))
            if profile is not None:
                profile.save(file)
        # Data and tasks are foreign: whatever is wrong with them, requests are routed without this adapter.
        except Exception as error:
            log.warning("%s takes no part in `auto`: %s", version.ref, error)
            return None
        return profile

    def _texts(self, version: VersionRecord, dataset_id: str) -> Iterator[str]:
        task = self._host.task(version.lineage.task)
        dataset = self._registry.dataset(dataset_id)
        with self._registry.files(version), self._registry.files(dataset) as folder:
            files = [folder / name for name, _, _ in dataset.files]
            examples = load_dataset(self._host.readers, task, files, dataset.format).examples
            state = self._states.get(version, task)
        random.Random(dataset_id).shuffle(examples)
        return prompt_texts(task, state, examples[:MOST_TEXTS])


def prompt_texts(task: AnyTask, state: BaseModel, examples: list[Any]) -> Iterator[str]:
    """What the model is asked for each example, as plain text. Examples that ask nothing are left out."""
    for example in examples:
        try:
            yield text_of(task.prompt(task.request_for(example, state), state))
        except RequestError:
            continue


def text_of(prompt: Prompt) -> str:
    """A prompt as one text, all its messages in their order."""
    return prompt.text if prompt.text is not None else "\n".join(message.content for message in prompt.messages)
