"""What route functions ask for."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from graft_server.problems import ProblemError
from graft_server.services import Services


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]


def require_engine(services: Services) -> None:
    """Refuse what only a running engine can decide.

    Raises:
        ProblemError: ``not-ready``.
    """
    if services.engine.state not in ("ready", "rebuilding"):
        reason = services.engine.error or f"the engine is {services.engine.state}"
        raise ProblemError("not-ready", f"{reason}; try again soon", retry_after=2)
