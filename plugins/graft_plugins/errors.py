"""Errors about names: what was asked for, and the nearest name that exists."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name``, or ``None`` if none is close."""
    matches = get_close_matches(name, list(known), n=1)
    return matches[0] if matches else None


class UnknownNameError(LookupError):
    """No thing of this kind has this name."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        self.kind = kind
        self.name = name
        self.nearest = nearest_name(name, names)
        if self.nearest is not None:
            hint = f"did you mean {self.nearest!r}?"
        elif names:
            hint = f"there are {', '.join(names)}"
        else:
            hint = "there are none"
        super().__init__(f"unknown {kind} {name!r}; {hint}")
