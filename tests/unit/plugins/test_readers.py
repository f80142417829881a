"""Every reader on small invented files, and on bad ones: rows with their places, errors with theirs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graft_plugins.manager import PluginHost
from graft_plugins.reader import DataError, RawRow
from graft_plugins.testing import check_reader

READERS = PluginHost.load(entry_points=False).readers


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def rows(reader: str, *files: Path) -> list[tuple[str, Any]]:
    return [(row.place, dict(row.data)) for row in check_reader(READERS[reader], files)]


def read(reader: str, *files: Path) -> list[RawRow | DataError]:
    """Everything the reader gives, its final exception too."""
    found: list[RawRow | DataError] = []
    try:
        found.extend(READERS[reader].read(files))
    except DataError as error:
        found.append(error)
    return found


def errors(reader: str, *files: Path) -> list[DataError]:
    return [row for row in read(reader, *files) if isinstance(row, DataError)]


# JSON


def test_jsonl_skips_blank_lines_and_keeps_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"q": 1}\n\n{"q": "ä"}')
    assert rows("jsonl", path) == [("a.jsonl:1", {"q": 1}), ("a.jsonl:3", {"q": "ä"})]


def test_jsonl_goes_on_behind_a_bad_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.ndjson", '{"q": 1}\n{"q": \n[1]\n{"q": 4}\n')
    found = read("jsonl", path)
    assert [row.place for row in found] == ["a.ndjson:1", "a.ndjson:2", "a.ndjson:3", "a.ndjson:4"]
    assert [type(row) for row in found] == [RawRow, DataError, DataError, RawRow]
    assert "not valid JSON" in str(found[1])
    assert "must be a JSON object, not list" in str(found[2])


def test_json_array_places_are_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '\ufeff[\n  {"q":\n 1},\n\n  {"q": 2}, {"q": 3}\n]\n')
    assert rows("jsonl", path) == [("a.json:2", {"q": 1}), ("a.json:5", {"q": 2}), ("a.json:5", {"q": 3})]


def test_json_object_with_one_array(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '{"meta": {"n": 2},\n "rows": [{"q": 1},\n {"q": 2}]}')
    assert rows("jsonl", path) == [("a.json:2", {"q": 1}), ("a.json:3", {"q": 2})]


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        ('[{"q": 1}, {"q": }]', "a.json:1", "not valid JSON"),
        ('[{"q": 1}\n {"q": 2}]', "a.json:2", "Expecting ',' or ']'"),
        ('[{"q": 1},\n', "a.json:2", "not valid JSON"),
        ('{"x": [{"q": 1}], "y": [{"q": 1}]}', "a.json:1", "found arrays x, y"),
        ('{"x": 1}', "a.json:1", "an object with x"),
        ('{"x" 1}', "a.json:1", "Expecting ':'"),
        ('"text"', "a.json:1", "an array of objects is expected"),
        ("[" * 100_000, "a.json", "nested too deeply"),
        ('{"x": ' + "[" * 100_000, "a.json", "nested too deeply"),
        ('[{"q": 1}]\n[{"q": 2}]', "a.json:2", "not valid JSON: extra data at column 1"),
        ('[{"q": 1}] x', "a.json:1", "not valid JSON: extra data at column 12"),
        ('{"x": [{"q": 1}]}\n\n{"x": [{"q": 2}]}', "a.json:3", "not valid JSON: extra data"),
        ('{"x": [{"q": 1}] "y": 2}', "a.json:1", "Expecting ',' or '}'"),
    ],
)
def test_broken_json_files(tmp_path: Path, content: str, place: str, message: str) -> None:
    error = errors("jsonl", write(tmp_path, "a.json", content))[-1]
    assert (error.place, error.fatal) == (place, True)
    assert message in error.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.text(), JSON, max_size=3), min_size=1, max_size=5), st.sampled_from([None, 0, 2]))
def test_any_array_of_objects_is_read_as_json_reads_it(tmp_path: Path, data: list[Any], indent: int | None) -> None:
    path = write(tmp_path, "a.json", json.dumps(data, indent=indent))
    assert [row for _, row in rows("jsonl", path)] == data


# Encodings


def test_a_wrong_encoding_is_said_with_line_and_offset(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"q": "ok"}\n{"q": "für"}\n'.encode("latin-1"))
    found = read("jsonl", path)
    assert isinstance(found[0], RawRow)
    error = found[1]
    assert isinstance(error, DataError)
    assert error.fatal
    assert str(error) == "a.jsonl:2: byte 0xfc at offset 20 is not valid UTF-8; save the file as UTF-8"


def test_utf16_is_named(tmp_path: Path) -> None:
    (error,) = errors("csv", write(tmp_path, "a.csv", "q,a\n1,2\n".encode("utf-16")))
    assert "the file is UTF-16; UTF-8 is expected" in error.message


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "q,a\n1,2\n".encode("utf-8-sig"))
    assert rows("csv", path) == [("a.csv:2", {"q": "1", "a": "2"})]


# CSV


@pytest.mark.parametrize("delimiter", list(",;\t|"))
def test_csv_finds_its_delimiter(tmp_path: Path, delimiter: str) -> None:
    content = delimiter.join(["q", '"a,;|"', "c"]) + "\n" + delimiter.join(["1", '"x,;|y"', ""]) + "\n"
    assert rows("csv", write(tmp_path, "a.csv", content)) == [("a.csv:2", {"q": "1", "a,;|": "x,;|y", "c": None})]


def test_tsv_is_split_at_tabs_only(tmp_path: Path) -> None:
    assert rows("csv", write(tmp_path, "a.tsv", "q,x\ta\n1\t2\n")) == [("a.tsv:2", {"q,x": "1", "a": "2"})]


def test_csv_line_numbers_count_line_ends_inside_cells(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'q,a\r\n"one\r\ntwo",1\r\n\r\nthree,2\r\nfour\r\n')
    found = read("csv", path)
    assert [row.place for row in found] == ["a.csv:2", "a.csv:5", "a.csv:6"]
    assert isinstance(found[0], RawRow)
    assert found[0].data["q"] == "one\r\ntwo"
    assert isinstance(found[2], DataError)
    assert "1 cells, the header has 2" in found[2].message


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        ("q,\n1,2\n", "a.csv:1", "column 2 of the header row has no name"),
        ("q,a,q\n1,2,3\n", "a.csv:1", "names column 'q' twice"),
        ('q,a\n1,2\n"never closed,3\n4,5\n', "a.csv:3", "begins here is not valid CSV"),
    ],
)
def test_broken_csv(tmp_path: Path, content: str, place: str, message: str) -> None:
    error = errors("csv", write(tmp_path, "a.csv", content))[-1]
    assert (error.place, error.fatal) == (place, True)
    assert message in error.message


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_cell_may_hold_a_long_document(tmp_path: Path, quote: str) -> None:
    document = "word " * 100_000
    path = write(tmp_path, "a.csv", f"q,a\n{quote}{document}{quote},1\n")
    assert rows("csv", path) == [("a.csv:2", {"q": document, "a": "1"})]


def test_a_cell_over_16_mib_is_refused(tmp_path: Path) -> None:
    (error,) = errors("csv", write(tmp_path, "a.csv", "q,a\n" + "x" * (17 << 20) + ",1\n"))
    assert (error.place, error.fatal) == ("a.csv:2", True)
    assert "field larger than field limit" in error.message


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1).filter(lambda text: text.strip())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_any_table_comes_back_as_it_was_written(tmp_path: Path, table: list[tuple[str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("left", "right"), *table])
    path = write(tmp_path, "a.csv", text.getvalue())
    assert [(row["left"], row["right"]) for _, row in rows("csv", path)] == table
    lines = [1 + text.getvalue()[: text.getvalue().index("\n")].count("\n") + 1]
    for left, right in table[:-1]:
        lines.append(lines[-1] + 1 + left.count("\n") + right.count("\n"))
    assert [place for place, _ in rows("csv", path)] == [f"a.csv:{line}" for line in lines]


# Parallel text


def test_parallel_files_with_language_suffixes(tmp_path: Path) -> None:
    source = write(tmp_path, "train.en", "Yes\n\nNo\n")
    target = write(tmp_path, "train.de", "Ja\n\nNein\n")
    assert rows("parallel-text", source, target) == [
        ("train.en:1", {"source": "Yes", "target": "Ja", "source_language": "en", "target_language": "de"}),
        ("train.en:3", {"source": "No", "target": "Nein", "source_language": "en", "target_language": "de"}),
    ]
    assert [row["source"] for _, row in rows("parallel-text", target, source)] == ["Ja", "Nein"]


def test_several_pairs_keep_one_direction(tmp_path: Path) -> None:
    names = ["train.en.txt", "train.pt_BR.txt", "dev.pt_BR.txt", "dev.en.txt"]
    files = [write(tmp_path, name, name + "\n") for name in names]
    assert [(row["source"], row["target"]) for _, row in rows("parallel-text", *files)] == [
        ("train.en.txt", "train.pt_BR.txt"),
        ("dev.en.txt", "dev.pt_BR.txt"),
    ]


def test_two_txt_files_without_languages(tmp_path: Path) -> None:
    files = [write(tmp_path, "english.txt", "Yes\n"), write(tmp_path, "german.txt", "Ja\n")]
    (row,) = rows("parallel-text", *files)
    assert row[1] == {"source": "Yes", "target": "Ja", "source_language": "", "target_language": ""}


def test_unequal_line_counts(tmp_path: Path) -> None:
    files = [write(tmp_path, "train.en", "Yes\nNo\n"), write(tmp_path, "train.de", "Ja\n")]
    (error,) = read("parallel-text", *files)
    assert isinstance(error, DataError)
    assert error.fatal
    assert "train.en has 2 lines and train.de has 1" in error.message


def test_a_line_without_counterpart_is_a_bad_row(tmp_path: Path) -> None:
    files = [write(tmp_path, "train.en", "Yes\nNo\n"), write(tmp_path, "train.de", "Ja\n \n")]
    (error,) = errors("parallel-text", *files)
    assert (error.place, error.fatal) == ("train.de:2", False)


@pytest.mark.parametrize("names", [["a.csv", "a.tsv"], ["train.en"], ["a.en", "b.de"], ["a.en", "a.de", "a.fr"]])
def test_what_is_no_parallel_text(tmp_path: Path, names: list[str]) -> None:
    assert not READERS["parallel-text"].accepts([tmp_path / name for name in names])


# PO

PO = r"""# Translators
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\n"
"Language: de\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\n"

msgid "Open"
msgstr "Öffnen"

#, fuzzy
msgid "Close"
msgstr "Klose"

msgid "Later"
msgstr ""

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d Datei"
msgstr[1] "%d Dateien"

#~ msgid "Gone"
#~ msgstr "Weg"
"""


def test_po_leaves_out_what_is_not_translated(tmp_path: Path) -> None:
    found = rows("po", write(tmp_path, "de.po", PO))
    assert [(place, row["source"], row["target"]) for place, row in found] == [
        ("de.po:8", "Open", "Öffnen"),
        ("de.po:18", "%d file", "%d Datei"),
        ("de.po:18", "%d files", "%d Dateien"),
    ]
    assert {(row["source_language"], row["target_language"]) for _, row in found} == {("en", "de")}


def test_po_in_the_charset_of_its_header(tmp_path: Path) -> None:
    content = PO.replace("charset=UTF-8", "charset=ISO-8859-1").encode("latin-1")
    assert rows("po", write(tmp_path, "de.po", content))[0][1]["target"] == "Öffnen"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PO.encode("latin-1"), "is not valid utf-8"),
        (b'msgid "a"\nmsgstr "b\nnonsense\n', "not a valid PO file"),
    ],
)
def test_broken_po(tmp_path: Path, content: bytes, message: str) -> None:
    (error,) = errors("po", write(tmp_path, "de.po", content))
    assert error.fatal
    assert message in error.message
    assert str(tmp_path) not in str(error)


# TMX

TMX = """<?xml version="1.0" encoding="{encoding}"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4">
  <header srclang="en-US" adminlang="en" datatype="plaintext" segtype="sentence" creationtool="x"
          creationtoolversion="1" o-tmf="x"/>
  <body>
    <tu>
      <tuv xml:lang="de"><seg>Öffne <bpt i="1">&lt;b&gt;</bpt><hi>die</hi> Tür</seg></tuv>
      <tuv xml:lang="en"><seg>Open &amp; close<ph>{{0}}</ph></seg></tuv>
      <tuv xml:lang="fr"><seg>Ouvrir</seg></tuv>
    </tu>
    <tu><tuv xml:lang="en"><seg>Alone</seg></tuv></tu>
  </body>
</tmx>
"""


@pytest.mark.parametrize("encoding", ["UTF-8", "ISO-8859-1"])
def test_tmx_gives_a_row_for_each_target_language(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "m.tmx", TMX.format(encoding=encoding).encode(encoding))
    found = rows("tmx", path)
    common = {"source": "Open & close", "source_language": "en"}
    assert found == [
        ("m.tmx:7", {**common, "target": "Öffne die Tür", "target_language": "de"}),
        ("m.tmx:7", {**common, "target": "Ouvrir", "target_language": "fr"}),
    ]
    (error,) = errors("tmx", path)
    assert (error.place, error.fatal) == ("m.tmx:12", False)


def test_tmx_keeps_the_rows_in_front_of_a_break(tmp_path: Path) -> None:
    path = write(tmp_path, "m.tmx", TMX.format(encoding="UTF-8").replace("</tmx>", "</oops>"))
    *found, error = read("tmx", path)
    assert sum(isinstance(row, RawRow) for row in found) == 2
    assert isinstance(error, DataError)
    assert (error.place, error.fatal) == ("m.tmx:14", True)


@pytest.mark.parametrize("entity", ['"aaaa"', 'SYSTEM "secret.txt"'])
def test_tmx_with_entities_is_refused(tmp_path: Path, entity: str) -> None:
    write(tmp_path, "secret.txt", "secret")
    bomb = f'<?xml version="1.0"?><!DOCTYPE tmx [<!ENTITY a {entity}>]><tmx><body>&a;</body></tmx>'
    (error,) = errors("tmx", write(tmp_path, "m.tmx", bomb))
    assert error.fatal
    assert "entities" in error.message


# SQuAD


def squad(folder: Path, *questions: dict[str, Any]) -> Path:
    document = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "Paris.", "qas": questions}]}]}
    return write(folder, "dev.json", json.dumps(document))


def test_squad_rows(tmp_path: Path) -> None:
    path = squad(
        tmp_path,
        {"question": "Where?", "answers": [{"text": "Paris"}, {"text": "Paris"}, {"text": "in Paris"}]},
        {"question": "When?", "is_impossible": True, "answers": []},
        {"question": "Why?", "answers": []},
    )
    assert rows("squad", path) == [
        (
            "dev.json:data[0].paragraphs[0].qas[0]",
            {"question": "Where?", "answers": ["Paris", "in Paris"], "context": "Paris."},
        )
    ]
    (error,) = errors("squad", path)
    assert error.place == "dev.json:data[0].paragraphs[0].qas[2]:answers"


def test_squad_does_not_take_other_json(tmp_path: Path) -> None:
    assert not READERS["squad"].accepts([write(tmp_path, "a.json", '[{"question": "x"}]')])


# Histories


def test_recbole_histories_in_order_of_time_with_titles(tmp_path: Path) -> None:
    inter = write(
        tmp_path,
        "toy.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "u1\t2\t5\t20\nu2\t1\t4\t5\nu1\t1\t3\t10\nu1\t9\t3\t30\nu1\t1\n",
    )
    item = write(
        tmp_path, "toy.item", "item_id:token\tmovie_title:token_seq\trelease_year:token\n1\tGraft\t1999\n2\tScion\t\n"
    )
    user = write(tmp_path, "toy.user", "user_id:token\nu1\n")
    files = [inter, item, user]
    assert rows("recbole", *files) == [
        ("toy.inter:2", {"user": "u1", "history": ["Graft (1999)", "Scion", "9"], "timestamps": [10.0, 20.0, 30.0]}),
        ("toy.inter:3", {"user": "u2", "history": ["Graft (1999)"], "timestamps": [5.0]}),
    ]
    (error,) = errors("recbole", *files)
    assert error.place == "toy.inter:6"


def test_recbole_without_its_columns(tmp_path: Path) -> None:
    (error,) = errors("recbole", write(tmp_path, "toy.inter", "user:token\titem_id:token\nu\t1\n"))
    assert error.fatal
    assert "no user_id:token" in error.message


def test_recbole_with_a_time_that_is_no_number(tmp_path: Path) -> None:
    path = write(tmp_path, "toy.inter", "user_id:token\titem_id:token\ttimestamp:float\nu\t1\tsoon\nu\t2\t1\n")
    (error,) = errors("recbole", path)
    assert (error.place, error.message) == ("toy.inter:2:timestamp", "'soon' is not a number")


@pytest.mark.parametrize(
    ("ratings", "items"),
    [
        (("u.data", "7\t1\t5\t20\n7\t2\t4\t10\n"), ("u.item", "1|Café (1990)|x\n2|Scion, The (1991)|y\n")),
        (("ratings.dat", "7::1::5::20\n7::2::4::10\n"), ("movies.dat", "1::Café (1990)::D\n2::Scion, The (1991)::D\n")),
        (
            ("ratings.csv", "userId,movieId,rating,timestamp\n7,1,5,20\n7,2,4,10\n"),
            ("movies.csv", 'movieId,title,genres\n1,Café (1990),D\n2,"Scion, The (1991)",D\n'),
        ),
    ],
)
def test_movielens_layouts(tmp_path: Path, ratings: tuple[str, str], items: tuple[str, str]) -> None:
    encoding = "utf-8" if ratings[0].endswith(".csv") else "latin-1"
    files = [write(tmp_path, name, content.encode(encoding)) for name, content in (ratings, items)]
    ((_, row),) = rows("movielens", *files)
    assert row == {"user": "7", "history": ["Scion, The (1991)", "Café (1990)"], "timestamps": [10.0, 20.0]}


def test_movielens_bad_rating_is_one_bad_row(tmp_path: Path) -> None:
    files = [write(tmp_path, "u.data", "7\t1\t5\n7\t1\t5\t1\n"), write(tmp_path, "u.item", "1|Graft|x\n")]
    (error,) = errors("movielens", *files)
    assert (error.place, error.fatal) == ("u.data:1", False)


def test_a_movielens_title_may_be_long(tmp_path: Path) -> None:
    title = "Scion " * 50_000
    files = [
        write(tmp_path, "ratings.csv", "userId,movieId,rating,timestamp\n7,1,5,20\n"),
        write(tmp_path, "movies.csv", f"movieId,title,genres\n1,{title},D\n"),
    ]
    ((_, row),) = rows("movielens", *files)
    assert row["history"] == [title.strip()]
