"""Texts as vectors of the base model, for as long as the request's time and its caller's key allow."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from graft_server.access.principal import current_lease
from graft_server.admission.deadlines import DeadlineError, before
from graft_server.engine.base import Embeddings, Engine
from graft_server.problems import ProblemError
from graft_server.serving.predictor import Terms


async def embed(engine: Engine, texts: Sequence[str], terms: Terms) -> Embeddings:
    """A vector for each text; cancelling it ends the work in the engine.

    Raises:
        ProblemError: ``deadline-exceeded``, or ``unauthorized`` because the caller's key has ended.
        EngineError: a text does not fit the context, or the engine does not run.
    """
    lease = current_lease.get()
    try:
        with nullcontext() if lease is None else lease.held():
            return await before(terms.deadline, engine.embed(texts))
    except DeadlineError as error:
        over = f"the request's {terms.timeout:g} s were over before all texts were embedded"
        raise ProblemError("deadline-exceeded", f"{over}; give it more time, or send fewer") from error
