"""The environments of the processes that compute: the engine, and what works beside it.

By default GNU OpenMP (what torch's Linux builds bring) spins for milliseconds at the end of each operation. Processes
that share cores then burn them waiting for threads which do not run. How many turns a thread spins before it sleeps is
`GOMP_SPINCOUNT <https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html>`_; what the operator sets stays.
"""

from __future__ import annotations

import os

# A fraction of a millisecond: an engine that has its cores to itself answers a fifth faster than with 1,000.
_ENGINE_SPINS = 20_000
# Some ten microseconds. On 2 cores, beside an engine that answers 8 clients, training took a third of the time that it
# takes with the engine's number, so the clients had the engine to themselves sooner; alone it was 2 % slower.
_BACKGROUND_SPINS = 1_000


def engine_environment() -> dict[str, str]:
    """This process's environment, for the engine: its OpenMP threads wait actively, but not for long."""
    return _environment(_ENGINE_SPINS)


def background_environment() -> dict[str, str]:
    """This process's environment, for training and whatever else computes beside an engine: OpenMP threads that wait
    give their core away almost at once."""
    return _environment(_BACKGROUND_SPINS)


def _environment(spins: int) -> dict[str, str]:
    return {"GOMP_SPINCOUNT": str(spins), **os.environ}
