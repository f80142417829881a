"""Turns the descriptions of ``calls.py`` into methods with the same parameters and documentation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def documented_as(build: Callable[..., Any], result: str = "{}") -> Callable[[F], F]:
    """Gives a method the name, documentation and parameters of ``build``, for ``help()`` and editors.

    ``result`` is the annotation of what it returns, around what the call answers with.
    """

    def decorate(method: F) -> F:
        signature = inspect.signature(build)
        answer = str(signature.return_annotation).partition("[")[2].removesuffix("]")
        this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        method.__name__ = method.__qualname__ = build.__name__
        method.__doc__ = build.__doc__
        method.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[this, *signature.parameters.values()], return_annotation=result.format(answer)
        )
        return method

    return decorate
