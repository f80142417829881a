"""What must hold of the engine's books. A breach is a mistake of ours: something leaked, or is counted twice."""

from __future__ import annotations


class IntegrityError(Exception):
    """The text says what does not fit."""


def require(condition: bool, breach: str) -> None:
    """
    Raises:
        IntegrityError: the condition does not hold.
    """
    if not condition:
        raise IntegrityError(breach)
