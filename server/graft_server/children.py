"""The environment of the processes that compute: the engine and the training workers."""

from __future__ import annotations

import os


def compute_environment() -> dict[str, str]:
    """This process's environment, with OpenMP threads that soon sleep while they wait.

    By default GNU OpenMP (what torch's Linux builds bring) spins for milliseconds at the end of each operation. An
    engine and a worker that share cores then burn them waiting for threads which do not run: two processes on 2
    cores got several times as much done with this. What the operator sets stays.
    """
    return {"GOMP_SPINCOUNT": "20000", **os.environ}
