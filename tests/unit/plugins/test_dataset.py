"""From files to examples: the reader that is chosen, and one clear sentence with the place for whatever is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from graft_plugins import UnknownNameError
from graft_plugins.dataset import LoadedRow, load_dataset, read_examples
from graft_plugins.manager import PluginHost
from graft_plugins.reader import DataError, DatasetReader, RawRow

HOST = PluginHost.load(entry_points=False)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def load(task: str, *files: Path, format: str | None = None) -> Any:  # noqa: A002
    return load_dataset(HOST.readers, HOST.task(task), files, format)


def test_good_rows_and_bad_rows_side_by_side(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "faq.jsonl",
        '{"q": "Why?", "a": "So."}\n{"q": "When?"}\n{"question": 7, "answers": ["x"]}\n{"q": "Who?", "a": "Me."}\n',
    )
    dataset = load("domain-qa", path)
    assert dataset.format == "jsonl"
    assert dataset.fatal is None
    assert [example.question for example in dataset.examples] == ["Why?", "Who?"]
    assert [str(error) for error in dataset.errors] == [
        "faq.jsonl:2:answers: this field is missing; the row has q",
        "faq.jsonl:3:question: input should be a valid string",
    ]


def test_a_place_names_the_column_as_it_stands_in_the_file(tmp_path: Path) -> None:
    dataset = load("domain-qa", write(tmp_path, "faq.jsonl", '{"q": "Why?", "a": ["x", 7]}\n'))
    assert dataset.errors[0].place == "faq.jsonl:1:a.1"


def test_several_problems_of_a_row_are_one_sentence(tmp_path: Path) -> None:
    dataset = load("translation", write(tmp_path, "a.jsonl", '{"x": 1}\n'))
    assert str(dataset.errors[0]) == (
        "a.jsonl:1:source: this field is missing; the row has x; target: this field is missing; the row has x"
    )


def test_read_examples_streams_rows_with_places(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "src,tgt\nyes,ja\nno,\n")
    first, second = read_examples(HOST.readers, HOST.task("translation"), [path])
    assert isinstance(first, LoadedRow)
    assert first.place == "a.csv:2"
    assert isinstance(second, DataError)
    assert second.place == "a.csv:3:target"


@pytest.mark.parametrize(
    ("task", "names", "expected"),
    [
        ("domain-qa", ["a.json"], "jsonl"),
        ("recommendation", ["ratings.csv", "movies.csv"], "movielens"),
        ("translation", ["ratings.csv", "movies.csv"], "csv"),
        ("translation", ["a.en", "a.de"], "parallel-text"),
    ],
)
def test_the_reader_made_for_the_task_comes_first(
    tmp_path: Path, task: str, names: Sequence[str], expected: str
) -> None:
    files = [write(tmp_path, name, "[]\n") for name in names]
    assert load(task, *files).format == expected


def test_squad_is_told_from_plain_json(tmp_path: Path) -> None:
    paragraph = '{"context": "c", "qas": [{"question": "q", "answers": [{"text": "a"}]}]}'
    dataset = load("domain-qa", write(tmp_path, "a.json", f'{{"data": [{{"paragraphs": [{paragraph}]}}]}}'))
    assert dataset.format == "squad"
    assert dataset.examples[0].context == "c"


def test_a_named_format_is_taken_even_for_another_task(tmp_path: Path) -> None:
    files = [write(tmp_path, "one", "Yes\n"), write(tmp_path, "two", "Ja\n")]
    assert load("chat", *files, format="parallel-text").errors[0].fatal
    path = write(tmp_path, "rows.txt", '{"prompt": "a", "completion": "b"}\n')
    assert len(load("chat", path, format="jsonl").examples) == 1
    with pytest.raises(UnknownNameError, match="unknown format 'josnl'; did you mean 'jsonl'"):
        load("chat", path, format="josnl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", None, "there is no such file"),
        ("a.jsonl", "", "the file is empty"),
        ("a.jsonl", "\n\n", "no rows were found (read as jsonl)"),
        ("a.csv", "src,tgt\n", "no rows were found (read as csv)"),
        ("a.xlsx", "PK", "no reader knows this kind of file; translation reads parallel-text, po, tmx, jsonl, csv"),
        ("a.inter", "x", "recbole files are for recommendation; translation reads"),
        ("a.jsonl", '{"src": "ü"}'.encode("latin-1"), "byte 0xfc at offset 9 is not valid UTF-8"),
    ],
)
def test_files_that_cant_be_used_at_all(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name if content is None else write(tmp_path, name, content)
    dataset = load("translation", path)
    assert dataset.examples == []
    (error,) = dataset.errors
    assert dataset.fatal is error
    assert name in error.place
    assert message in error.message


def test_a_folder_and_no_file_at_all(tmp_path: Path) -> None:
    assert "this is a folder" in load("translation", tmp_path).errors[0].message
    assert "name at least one data file" in load("translation").errors[0].message


def test_a_fatal_error_keeps_the_rows_in_front_of_it(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'{"src": "a", "tgt": "b"}\n\xff\n{"src": "c", "tgt": "d"}\n')
    dataset = load("translation", path)
    assert len(dataset.examples) == 1
    assert dataset.fatal is not None
    assert dataset.fatal.place == "a.jsonl:2"


class Exploding(DatasetReader):
    name = "exploding"
    description = "Breaks behind its first row."

    def accepts(self, files: Sequence[Path]) -> bool:
        return True

    def read(self, files: Sequence[Path]) -> Iterator[RawRow | DataError]:
        yield RawRow("a:1", {"src": "a", "tgt": "b"})
        raise ZeroDivisionError("oops")


def test_a_reader_that_breaks_is_a_fatal_error_and_no_exception(tmp_path: Path) -> None:
    path = write(tmp_path, "a.any", "x")
    dataset = load_dataset({"exploding": Exploding()}, HOST.task("translation"), [path])
    assert len(dataset.examples) == 1
    assert dataset.fatal is not None
    assert dataset.fatal.message == "the exploding reader failed: ZeroDivisionError: oops"
