"""The one error of this package: a base model that can't be found, read or converted."""

from __future__ import annotations


class BaseModelError(Exception):
    """One clear sentence for the person who named the base model."""
