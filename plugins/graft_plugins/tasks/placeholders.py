"""Placeholders and tags in user-interface texts: what a translation must keep as it is."""

from __future__ import annotations

import re
from collections import Counter

#: ``${x}``, ``{name}``, ``{0}``, ``{{x}}``, ``%(name)s``, ``%1$s``, ``%s``, ``%.2f``, ``<b>``, ``</a>``.
PLACEHOLDER = re.compile(
    r"""
      \$\{[^{}\s]+\}
    | \{\{\s*[\w.-]+\s*\}\}
    | \{[\w.\[\]]*(?:![rsa])?(?::[^{}\s]*)?\}
    | %\([\w.-]+\)[-#0+]*\d*(?:\.\d+)?[a-zA-Z]
    | %(?:\d+\$)?[-#0+]*\d*(?:\.\d+)?(?:hh|h|ll|l|z)?[sdifuxXeEgGcr@](?![a-zA-Z])
    | </?[a-zA-Z][^<>]*>
    """,
    re.VERBOSE,
)


def placeholders(text: str) -> list[str]:
    """All placeholders and tags, in order, repeats included."""
    return PLACEHOLDER.findall(text)


def missing_placeholders(source: str, answer: str) -> list[str]:
    """Placeholders of ``source`` that ``answer`` has less often, in the order of ``source``."""
    left = Counter(placeholders(answer))
    missing = []
    for placeholder in placeholders(source):
        if left[placeholder]:
            left[placeholder] -= 1
        else:
            missing.append(placeholder)
    return missing
