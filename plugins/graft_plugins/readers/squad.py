"""SQuAD v1.1 and v2.0 JSON files (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from graft_plugins.hookspecs import hookimpl
from graft_plugins.reader import DataError, DatasetReader, RawRow
from graft_plugins.text_files import head, read_text


class SquadReader(DatasetReader):
    """Questions with their paragraph as context. The unanswerable questions of v2.0 are left out.

    Official files are one long line, so a row's place is its path: ``dev.json:data[0].paragraphs[2].qas[1]``.
    """

    name = "squad"
    description = "SQuAD v1.1 and v2.0 JSON; unanswerable questions are left out."
    tasks: ClassVar[frozenset[str]] = frozenset({"domain-qa"})

    def accepts(self, files: Sequence[Path]) -> bool:
        return all(path.suffix.lower() == ".json" and '"paragraphs"' in head(path) for path in files)

    def read(self, files: Sequence[Path]) -> Iterator[RawRow | DataError]:
        for path in files:
            yield from _read_file(path)


def _read_file(path: Path) -> Iterator[RawRow | DataError]:
    try:
        document = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        message = f"not valid JSON: {error.msg} at column {error.colno}"
        raise DataError(f"{path.name}:{error.lineno}", message, fatal=True) from None
    for a, article in enumerate(_list(document, "data")):
        for p, paragraph in enumerate(_list(article, "paragraphs")):
            for q, question in enumerate(_list(paragraph, "qas")):
                place = f"{path.name}:data[{a}].paragraphs[{p}].qas[{q}]"
                row = _row(place, paragraph, question)
                if row is not None:
                    yield row


def _list(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _row(place: str, paragraph: Any, question: Any) -> RawRow | DataError | None:
    if not isinstance(question, dict):
        return DataError(place, "a question must be a JSON object")
    if question.get("is_impossible"):
        return None
    texts = [answer["text"] for answer in _list(question, "answers") if isinstance(answer, dict) and "text" in answer]
    # Annotators often agree; each accepted answer is wanted once, in the order given.
    answers = list(dict.fromkeys(map(str, texts)))
    if not answers:
        return DataError(f"{place}:answers", "the question has no answer")
    return RawRow(
        place, {"question": question.get("question"), "answers": answers, "context": paragraph.get("context")}
    )


@hookimpl
def register_readers(register: Callable[[DatasetReader], None]) -> None:
    register(SquadReader())
