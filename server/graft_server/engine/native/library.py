"""The C++ of this folder as one library: compiled once a machine, kept in the cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_INSTEAD = "LoRA, attention and norms are computed with torch's operations, which is slower"
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17", "-shared", "-fPIC")

#: The types of numbers that each function is there for, and the end of its name.
_ENDINGS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def native_function(name: str, dtype: torch.dtype, arguments: Sequence[Any]) -> Callable[..., None] | None:
    """The compiled function for numbers of that type, which takes ``arguments`` (types of ctypes); ``None`` where it
    can't be compiled here, or there is none for the type."""
    library = native_library() if dtype in _ENDINGS else None
    if library is None:
        return None
    function: Any = getattr(library, f"{name}_{_ENDINGS[dtype]}")
    function.argtypes, function.restype = arguments, None
    return function  # type: ignore[no-any-return]


@functools.cache
def native_library() -> ctypes.CDLL | None:
    """The compiled functions; ``None``, and a warning, where they can't be compiled here."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        logger.warning("no C++ compiler is here: %s; install g++", _INSTEAD)
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except (subprocess.CalledProcessError, OSError, RuntimeError) as error:  # the last one where there is no home
        detail = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        logger.warning("%s: %s failed: %s", _INSTEAD, compiler, detail)
        return None


def _compiled(compiler: str) -> Path:
    """The library, compiled unless this compiler has compiled this source for this kind of processor before."""
    # Its macros name the compiler's version and everything that the processor can do.
    macros = _run(compiler, *_FLAGS[:3], "-dM", "-E", "-x", "c++", os.devnull)
    sources = sorted(_FOLDER.glob("*.cpp"))
    content = b"".join(path.read_bytes() for path in (*sources, *sorted(_FOLDER.glob("*.h"))))
    digest = hashlib.sha256(content + macros.encode() + repr(_FLAGS).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("GRAFT_CACHE") or "~/.cache/graftwork").expanduser() / "native"
    library = folder / f"graft-{digest}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / library.name
            _run(compiler, *_FLAGS, "-o", str(fresh), *map(str, sources))
            fresh.replace(library)
    return library


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
