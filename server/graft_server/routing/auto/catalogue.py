"""The profiles of all adapters, kept in step with the registry: who is published takes part with the next request.

The latest version of an adapter that says what it is for decides: by the profile that lies beside its weights, or by
the dataset that it was trained on. Of a dataset the profile is made once and kept in the data folder under its id, so
that neither a restart nor a deleted dataset loses it. Blocking: called in a thread.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from graft_plugins.dataset import load_dataset
from graft_plugins.manager import PluginHost
from graft_plugins.task import AnyTask, Prompt, RequestError
from graft_server.registry import Registry
from graft_server.registry.errors import UnavailableError
from graft_server.registry.records import VersionRecord
from graft_server.registry.visibility import Visibility, visible
from graft_server.routing.auto.index import Match, ProfileIndex
from graft_server.routing.auto.profiles import MOST_TEXTS, PROFILE_FILE, Profile, profile_of
from graft_server.routing.states import StateCache

log = logging.getLogger(__name__)

FOLDER = "profiles"
#: Seconds after which files that could not be had are asked for again.
_PAUSE = 10.0
#: Indexes of what limited callers see that are kept.
_MOST_VIEWS = 16
_UNDESCRIBED = "none of its versions was trained here or registered with a profile (--profile)"


@dataclass(frozen=True, slots=True)
class _Known:
    """A consistent view: the profiles up to one published version, and the tasks of their adapters."""

    newest: int
    profiles: dict[str, Profile]
    tasks: dict[str, str]
    index: ProfileIndex
    #: Why adapters that say what they are for take no part, by name.
    faults: dict[str, str] = field(default_factory=dict)
    #: Versions whose files could not be had, and when they are asked for again.
    pending: dict[str, VersionRecord] = field(default_factory=dict)
    again: float = math.inf
    #: The index of what limited callers see, by its names: how rare a word is must not tell of what they don't see.
    views: OrderedDict[frozenset[str], ProfileIndex] = field(default_factory=OrderedDict)

    def index_for(self, view: Visibility | None) -> ProfileIndex:
        if view is None:
            return self.index
        seen = frozenset(filter(view.allows, self.profiles))
        if len(seen) == len(self.profiles):
            return self.index
        index = self.views.pop(seen, None)
        if index is None:
            index = ProfileIndex({name: profile for name, profile in self.profiles.items() if name in seen})
        # The ones used last stay.
        self.views[seen] = index
        while len(self.views) > _MOST_VIEWS:
            self.views.popitem(last=False)
        return index


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
        ``task``. Those that the caller may not see are not there."""
        view, known = visible.get(), self._seen_whole()
        index = known.index_for(view)
        if task is None:
            return index.match(text)
        return [match for match in index.match(text, len(index.names)) if known.tasks[match.name] == task]

    def absent(self, task: str | None = None) -> dict[str, str]:
        """Why adapters are never chosen, by the reference of their latest version; those of one task with ``task``."""
        known = self._seen_whole()
        return {
            adapter.latest.ref: known.faults.get(adapter.name, _UNDESCRIBED)
            for adapter in self._registry.adapters(task)
            # Nobody expects it of the checkpoints of a training.
            if adapter.name not in known.profiles and adapter.latest.lineage.step is None
        }

    def _seen_whole(self) -> _Known:
        """The catalogue is everybody's, so it is made of what nobody may be kept from."""
        token = visible.set(None)
        try:
            return self.refresh()
        finally:
            visible.reset(token)

    def refresh(self) -> _Known:
        """Take in what was published since the last time."""
        newest = self._registry.newest_engine_id()
        if self._is_current(newest):
            return self._known
        with self._refreshing:
            known = self._known
            if self._is_current(newest):
                return known
            published = self._registry.described_after(known.newest, PROFILE_FILE)
            versions = known.pending | {version.adapter: version for version in published}
            names = self._registry.adapter_names()
            profiles = {name: profile for name, profile in known.profiles.items() if name in names}
            tasks, faults, pending = dict(known.tasks), dict(known.faults), {}
            for name, version in versions.items():
                faults.pop(name, None)
                try:
                    profiles[name], tasks[name] = self._profile(version), version.lineage.task
                # Data, files and tasks are foreign: whatever is wrong with them, requests are routed without them.
                except Exception as error:
                    log.warning("%s takes no part in `auto`: %s", version.ref, error)
                    faults[name] = str(error)
                    if isinstance(error, UnavailableError) and name in names:
                        pending[name] = version
            again = time.monotonic() + _PAUSE if pending else math.inf
            newest = max(newest, known.newest)
            self._known = _Known(newest, profiles, tasks, ProfileIndex(profiles), faults, pending, again)
            return self._known

    def _is_current(self, newest: int) -> bool:
        return newest <= self._known.newest and time.monotonic() < self._known.again

    def _profile(self, version: VersionRecord) -> Profile:
        if PROFILE_FILE in version.files:
            with self._registry.files(version) as folder:
                return Profile.load(folder / PROFILE_FILE)
        dataset = version.lineage.dataset or ""
        file = self._folder / f"{dataset}.safetensors"
        try:
            return Profile.load(file)
        except (OSError, ValueError):
            pass  # not made yet, or damaged
        profile = profile_of(self._texts(version, dataset))
        if profile is None:
            raise ValueError("the rows of its dataset have no words")
        profile.save(file)
        return profile

    def _texts(self, version: VersionRecord, dataset_id: str) -> Iterator[str]:
        task = self._host.task(version.lineage.task)
        dataset = self._registry.dataset(dataset_id)
        with self._registry.files(version), self._registry.files(dataset) as folder:
            files = [folder / name for name, _, _ in dataset.files]
            examples = load_dataset(self._host.readers, task, files, dataset.format).examples
            state = self._states.get(version, task)
        return sampled_texts(task, state, examples, seed=dataset_id)


def sampled_texts(task: AnyTask, state: BaseModel, examples: list[Any], *, seed: str) -> Iterator[str]:
    """What the model is asked for some of the examples, as many as a profile is made of."""
    chosen = list(examples)
    random.Random(seed).shuffle(chosen)
    return prompt_texts(task, state, chosen[:MOST_TEXTS])


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
