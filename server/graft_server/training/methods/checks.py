"""Checks of an adapter's tensors, shared by all methods: present, of the right shape, finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from graft_plugins.errors import nearest_name
from graft_plugins.method import AdapterFault
from graft_server.training.methods.detect import CONFIG, WEIGHTS


def positive_int(config: Mapping[str, Any], field: str) -> int:
    """A field that must be a positive whole number.

    Raises:
        AdapterFault: it is missing or something else.
    """
    value = config.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise AdapterFault(f"{CONFIG}: {field} must be a positive whole number, not {value!r}")
    return value


def check_tensor(name: str, tensor: Any, shape: Sequence[int]) -> Any:
    """``tensor`` if it has this shape, a floating-point type and finite values.

    Raises:
        AdapterFault: with the tensor's name and what is wrong with it.
    """
    if list(tensor.shape) != list(shape):
        raise AdapterFault(f"{WEIGHTS}: {name} has shape {list(tensor.shape)}, but must have {list(shape)}")
    if not tensor.is_floating_point():
        raise AdapterFault(f"{WEIGHTS}: {name} has type {tensor.dtype}, but must be floating-point")
    # One pass: a sum is finite only if every value is; in fp64 no sum of finite values overflows.
    if not math.isfinite(float(tensor.double().sum())):
        raise AdapterFault(f"{WEIGHTS}: {name} has values that are NaN or infinite")
    return tensor


def check_names(found: Iterable[str], expected: Iterable[str]) -> None:
    """Raises ``AdapterFault`` unless both hold the same tensor names."""
    found, expected = set(found), set(expected)
    for name in sorted(expected - found):
        raise AdapterFault(f"{WEIGHTS}: {name} is missing")
    for name in sorted(found - expected):
        near = nearest_name(name, expected)
        hint = f"; the nearest known one is {near}" if near else ""
        raise AdapterFault(f"{WEIGHTS}: {name} belongs to no part of this method and base model{hint}")
