"""The profile that an adapter brings along: what it is for, told by rows of its task. The rows are not kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from graft_plugins.dataset import load_dataset
from graft_server.api.datasets import refuse_bad
from graft_server.problems import ProblemError
from graft_server.routing.auto.catalogue import sampled_texts
from graft_server.routing.auto.profiles import PROFILE_FILE, profile_of
from graft_server.routing.states import STATE_FILE
from graft_server.services import Services


def write_profile(services: Services, task_name: str, folder: Path, files: Sequence[Path]) -> None:
    """Make the profile of an adapter folder that was checked, from files as a dataset has them. Blocking.

    Raises:
        ProblemError: ``invalid-data``, where rows are bad or have no words.
        UnknownNameError: no format reads the files.
    """
    task = services.host.task(task_name)
    loaded = load_dataset(services.host.readers, task, files, None)
    refuse_bad(loaded, skip_bad=False)
    written = folder / STATE_FILE
    state = task.state_model.model_validate_json(written.read_bytes()) if written.exists() else task.state_model()
    profile = profile_of(sampled_texts(task, state, loaded.examples, seed="profile"))
    if profile is None:
        raise ProblemError("invalid-data", "profile: its rows have no words that requests could be compared with")
    profile.save(folder / PROFILE_FILE)
