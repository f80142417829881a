"""GGUF files, converted once into a folder of bf16 safetensors beside their tokenizer.

The conversion runs in a process of its own: it needs torch and several times the model's size in memory, and
the server wants neither.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from graft_server.base_model.digests import remembered_sha256
from graft_server.base_model.errors import BaseModelError

_MAGIC = b"GGUF"
_PERCENT = re.compile(rb"(\d+)%\|")


def convert_once(gguf: Path, cache_dir: Path, report: Callable[[str, float | None], None]) -> Path:
    """The folder of the converted model, in ``cache_dir`` under the file's sha256.

    Raises:
        OSError: the file is missing, or the disk is full.
        BaseModelError: the file is no GGUF file, damaged, or of a kind that can't be converted.
    """
    with gguf.open("rb") as stream:
        magic = stream.read(len(_MAGIC))
    if magic != _MAGIC:
        raise BaseModelError(f"{gguf}: not a GGUF file")
    models = cache_dir / "models"
    models.mkdir(parents=True, exist_ok=True)
    target = models / remembered_sha256([gguf], b"", cache_dir)[:32]
    with _locked(target.with_suffix(".lock"), report):
        if target.is_dir():
            return target
        staging = target.with_suffix(".staging")
        # What a killed conversion left; nobody else writes here while the lock is held.
        shutil.rmtree(staging, ignore_errors=True)
        try:
            _run_conversion(gguf, staging, report)
            os.rename(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


@contextmanager
def _locked(path: Path, report: Callable[[str, float | None], None]) -> Iterator[None]:
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another process that converts the same model", None)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _run_conversion(gguf: Path, staging: Path, report: Callable[[str, float | None], None]) -> None:
    report(f"converting {gguf.name} to bf16 safetensors", None)
    command = [sys.executable, "-m", "graft_server.base_model.convert", str(gguf), str(staging)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        assert child.stdout is not None
        last_line = _follow(child.stdout, lambda fraction: report(f"converting {gguf.name}", fraction))
    if child.returncode:
        raise BaseModelError(f"{gguf}: can't be converted: {last_line}")


def _follow(stream: IO[bytes], progress: Callable[[float], None]) -> str:
    """Read a child's output to its end, pass on its progress bars' percentages, return its last line."""
    lines: deque[str] = deque([""], maxlen=1)
    fd = stream.fileno()
    rest = b""
    reached = 0
    while block := os.read(fd, 4096):
        *whole, rest = re.split(rb"[\r\n]", rest + block)
        for line in whole:
            if percent := _PERCENT.search(line):
                # Short bars follow the long one; a fraction that falls back would only confuse.
                if int(percent.group(1)) > reached:
                    reached = int(percent.group(1))
                    progress(reached / 100)
            elif line.strip():
                lines.append(line.decode(errors="replace").strip())
    if rest.strip():
        lines.append(rest.decode(errors="replace").strip())
    return lines[0]
