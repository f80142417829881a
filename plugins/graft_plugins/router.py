"""What a router is: it picks an adapter for a request that names none (``model: "auto"``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class RouteCandidate:
    """An adapter that a router may choose."""

    name: str
    task: str
    description: str


@dataclass(frozen=True, slots=True)
class RouteChoice:
    """What a router chose and how sure it is, from 0 to 1."""

    name: str
    confidence: float


class Router(ABC):
    """Picks an adapter from the text of a request. Register an instance through ``register_routers``."""

    name: ClassVar[str]
    description: ClassVar[str]

    @abstractmethod
    def choose(self, text: str, candidates: Sequence[RouteCandidate]) -> RouteChoice | None:
        """The adapter for ``text``, or ``None`` to leave it to the next router and then to the base."""
