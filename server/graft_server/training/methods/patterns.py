"""``rank_pattern`` and ``alpha_pattern``: regular expressions on the names of modules, read as PEFT reads them.

They come with files that anybody may upload, and Python's matcher tries one way through an expression after another.
Only those with few ways are taken, so that matching them is quick whatever the names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

MOST_PATTERNS = 4096
MOST_CHARACTERS = 256
#: Characters of a long module name: in how many places ``.*`` can end.
_NAME_LENGTH = 64
#: And of the number of a layer or an expert.
_NUMBER_LENGTH = 4
#: Room for the quantifier in front of every pattern, two of its own and a number, or for alternatives that begin alike.
_MOST_WAYS = _NUMBER_LENGTH * (_NAME_LENGTH + 2) ** 3
#: Of all patterns together: each module is matched against all of them.
_MOST_WAYS_IN_ALL = 16 * _MOST_WAYS
_DIGITS = ([(ops.CATEGORY, ops.CATEGORY_DIGIT)], [(ops.RANGE, (ord("0"), ord("9")))])
_ONE_CHARACTER = (ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN)
_ADVICE = (
    "name the modules, such as 'layers.3.mlp.up_proj', or use at most two of `.*`, "
    "and groups such as `(q|k)_proj` that are not repeated"
)


class PatternError(ValueError):
    """Patterns that can't be taken: one sentence, to stand behind the name of the field."""


class ModulePatterns:
    """Which of the patterns that ``check_patterns`` has let pass stands for a module."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._compiled = [(pattern, re.compile(_at_the_end(pattern))) for pattern in patterns]

    def key(self, module: str) -> str | None:
        """The first pattern that matches the end of a module's name (PEFT's ``get_pattern_key``)."""
        return next((pattern for pattern, compiled in self._compiled if compiled.match(module)), None)


def check_patterns(patterns: Any) -> None:
    """Look at the shape of the patterns, without matching one.

    Raises:
        PatternError: they are no object, too many, too long, no regular expressions, or could take too long to match.
    """
    if not isinstance(patterns, dict):
        raise PatternError(f"must be an object, not {type(patterns).__name__}")
    if len(patterns) > MOST_PATTERNS:
        raise PatternError(
            f"has {len(patterns)} patterns, and at most {MOST_PATTERNS} are taken; use one for several modules"
        )
    if sum(map(_checked_ways, patterns)) > _MOST_WAYS_IN_ALL:
        raise PatternError(f"could take too long to match; {_ADVICE}")


def _at_the_end(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _checked_ways(pattern: str) -> int:
    if len(pattern) > MOST_CHARACTERS:
        raise PatternError(
            f"has a key of {len(pattern)} characters, {pattern[:32]!r}..., and at most {MOST_CHARACTERS} are taken; "
            "use several shorter ones"
        )
    try:
        ways = _ways(_parser.parse(_at_the_end(pattern)))
    except (re.error, OverflowError, RecursionError) as error:
        raise PatternError(f"has a key that is no pattern, {pattern!r}: {error}") from error
    if ways is None or ways > _MOST_WAYS:
        raise PatternError(f"has a key that could take too long to match, {pattern!r}; {_ADVICE}")
    return ways


def _ways(parsed: Iterable[tuple[Any, Any]]) -> int | None:
    """A bound on the ways that the matcher can take through a sequence of items, in a name of ``_NAME_LENGTH``;
    ``None`` where there is no good one."""
    ways = 1
    for op, argument in parsed:
        own = _ways_of(op, argument)
        if own is None:
            return None
        ways *= own
    return ways


def _ways_of(op: Any, argument: Any) -> int | None:
    if op in _ONE_CHARACTER or op is ops.AT:
        return 1
    if op is ops.SUBPATTERN:
        _, added_flags, removed_flags, inner = argument
        return None if added_flags or removed_flags else _ways(inner)
    if op is ops.BRANCH:
        return _ways_of_branches(argument[1])
    if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
        return _ways_of_repeat(*argument)
    return None


def _ways_of_branches(branches: Iterable[Any]) -> int | None:
    """Of branches that begin with different letters, the matcher gets into one only."""
    by_letter: Counter[int | None] = Counter()
    for branch in branches:
        ways = _ways(branch)
        if ways is None:
            return None
        op, argument = branch[0] if len(branch) else (None, None)
        by_letter[argument if op is ops.LITERAL else None] += ways
    anywhere = by_letter.pop(None, 0)
    return anywhere + max(by_letter.values(), default=0)


def _ways_of_repeat(least: Any, most: Any, repeated: Any) -> int | None:
    if most == 1:
        ways = _ways(repeated)
        return None if ways is None else ways + 1 - int(least)
    if len(repeated) != 1 or repeated[0][0] not in _ONE_CHARACTER:
        return None
    op, argument = repeated[0]
    longest = _NUMBER_LENGTH if op is ops.IN and argument in _DIGITS else _NAME_LENGTH
    return min(int(most), longest) - min(int(least), longest) + 1
