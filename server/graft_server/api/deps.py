"""What route functions ask for."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Request

from graft_client.schemas.predict import MAX_TIMEOUT
from graft_server.engine.base import UP
from graft_server.problems import ProblemError
from graft_server.registry.visibility import actor
from graft_server.services import Services
from graft_server.serving.predictor import Terms


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]


def who_asks() -> str:
    """Whose name a change is kept under, as in the audit log."""
    return actor.get()


WhoDep = Annotated[str, Depends(who_asks)]


async def _terms(
    services: ServicesDep,
    seconds: Annotated[
        float | None,
        Header(
            alias="X-Graft-Timeout",
            gt=0,
            le=MAX_TIMEOUT,
            description="Seconds until the whole answer at most, waiting included.",
        ),
    ] = None,
) -> Terms:
    return services.predictor.terms(seconds)


TermsDep = Annotated[Terms, Depends(_terms)]
"""From a header what ``timeout`` is in a native request: the ``/v1`` bodies have no field for it."""


def require_engine(services: Services, *, awake: bool = True) -> None:
    """Refuse what only a running engine can decide; one that sleeps still knows what it can serve.

    Raises:
        ProblemError: ``not-ready``.
    """
    state = services.engine.state
    if state not in UP or (awake and state == "asleep"):
        reason = services.engine.error or f"the engine is {state}"
        raise ProblemError("not-ready", f"{reason}; try again soon", retry_after=2)
