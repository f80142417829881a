"""Hooks of schemathesis: half of the names that it makes up become names that the scripted server knows.

Nearly all others lead no further than to a 404.
"""

from __future__ import annotations

import zlib
from typing import Any

import schemathesis

from support.scripted_server import ADAPTER, ROUTE, TASK

#: Fields and parameters -> what is known under them; the same field always becomes the same for the same value.
KNOWN = {
    "name": [ADAPTER, ROUTE, TASK],
    "ref": [ADAPTER, f"{ADAPTER}@1"],
    "which": ["1", "production"],
    "alias": ["production"],
    "number": [1, 2],
    "model": ["base", ADAPTER, f"{ADAPTER}@2", ROUTE],
    "adapter": [ADAPTER, "base", ROUTE],
    "task": [TASK, "chat"],
}


def known(values: Any) -> Any:
    """``values`` with some of the names in it replaced."""
    if isinstance(values, list):
        return [known(value) for value in values]
    if not isinstance(values, dict):
        return values
    changed = {}
    for name, value in values.items():
        names = KNOWN.get(name, [])
        chance = zlib.crc32(repr((name, value)).encode())
        changed[name] = names[chance // 2 % len(names)] if names and chance % 2 else known(value)
        if name == "timeout" and isinstance(value, float):
            changed[name] = 20.0
    return changed


@schemathesis.hook
def map_headers(context: Any, headers: Any) -> Any:
    # A request that gives itself no time is answered 504, as it should be.
    return {name: "20" if name == "X-Graft-Timeout" else value for name, value in (headers or {}).items()}


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    # What the other operations ask for stays.
    return path_parameters if context.operation.method.upper() == "DELETE" else known(path_parameters)


@schemathesis.hook
def map_query(context: Any, query: Any) -> Any:
    return known(query)


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    return known(body)
