"""What an engine is that is built where no C++ compiler is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch


def no_compiler() -> AbstractContextManager[Any]:
    return patch("graft_server.engine.native.library.native_library", lambda: None)
