"""The conformance suite finds what it promises to find, and says it in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from graft_plugins import DataError, DatasetReader, Metric, Prompt, RawRow, Report, Split, TrainingPair, hookimpl
from graft_plugins.tasks.domain_qa import DomainQaTask, QaExample, QaRequest
from graft_plugins.testing import check_plugin, check_reader, check_task

ROWS: list[dict[str, Any]] = [{"q": f"question {n}", "a": f"answer {n}"} for n in range(8)]


class BadName(DomainQaTask):
    name = "Domain QA"


class BadDefaults(DomainQaTask):
    training_defaults = {"optimizer": object()}  # noqa: RUF012


class BadExampleRequest(DomainQaTask):
    example_request = {"query": "x"}  # noqa: RUF012


class TakesAnything(DomainQaTask):
    def parse_row(self, row: Any) -> QaExample:
        return QaExample(question=row.get("q", "x"), answers=[row.get("a", "y")])


class RaisesKeyError(DomainQaTask):
    def parse_row(self, row: Any) -> QaExample:
        return QaExample(question=row["q"], answers=[row["a"]])


class SameOnBothSides(DomainQaTask):
    def split(self, examples: Sequence[QaExample], *, test_rows: int, seed: int) -> Split[QaExample]:
        return Split(train=list(examples), test=list(examples[:test_rows]))


class LeaksUnderAnotherKey(DomainQaTask):
    def split(self, examples: Sequence[QaExample], *, test_rows: int, seed: int) -> Split[QaExample]:
        return Split(train=list(examples), test=[example.model_copy() for example in examples[:test_rows]])

    def group_key(self, example: QaExample) -> str:
        return str(id(example))


class NoTest(DomainQaTask):
    def split(self, examples: Sequence[QaExample], *, test_rows: int, seed: int) -> Split[QaExample]:
        return Split(train=list(examples), test=[])


class RandomPairs(DomainQaTask):
    calls = 0

    def training_pairs(self, train: Sequence[QaExample], state: Any) -> Iterator[TrainingPair]:
        self.calls += 1
        yield TrainingPair(prompt=Prompt.chat(str(self.calls)), target="x")


class WatchesWhatItLearns(DomainQaTask):
    def validation_split(self, train: Sequence[QaExample], *, validation_rows: int, seed: int) -> Split[QaExample]:
        return Split(train=list(train), test=list(train[:validation_rows]))


class EmptyPrompt(DomainQaTask):
    def prompt(self, request: QaRequest, state: Any) -> Prompt:
        return Prompt.chat(" ")


class NoPrompt(DomainQaTask):
    def prompt(self, request: QaRequest, state: Any) -> Prompt:
        return Prompt()


class WrongPrimary(DomainQaTask):
    def evaluate(self, pairs: Any, state: Any) -> Report:
        return Report(primary="f2", metrics={"f1": Metric(value=1)}, rows=len(pairs))


class LowerIsBetter(DomainQaTask):
    def evaluate(self, pairs: Any, state: Any) -> Report:
        report = super().evaluate(pairs, state)
        worse = report.metrics["f1"].model_copy(update={"higher_is_better": False})
        return report.model_copy(update={"metrics": {"f1": worse}})


class NotText(DomainQaTask):
    def text_of(self, response: Any) -> str:
        return response  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (BadName(), "name 'Domain QA' is invalid"),
        (BadDefaults(), "training_defaults must be plain JSON"),
        (BadExampleRequest(), "example_request is not a valid request"),
        (TakesAnything(), "takes a row without any of the task's fields"),
        (RaisesKeyError(), "must raise RowError or ValidationError"),
        (SameOnBothSides(), "is on both sides of the split"),
        (LeaksUnderAnotherKey(), "the held-out row .* is among the training pairs"),
        (NoTest(), "holds nothing out of 8 rows"),
        (RandomPairs(), "differ from call to call"),
        (WatchesWhatItLearns(), "to watch the loss on is among the training pairs"),
        (EmptyPrompt(), "the prompt has an empty text"),
        (NoPrompt(), "either messages or text"),
        (WrongPrimary(), "primary metric 'f2' is not among f1"),
        (LowerIsBetter(), "right answers score f1 1, wrong ones"),
        (NotText(), "text_of gives QaResponse, not str"),
    ],
)
def test_each_breach_of_the_contract_is_named(task: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_task(task, ROWS)


def test_too_few_rows_and_rows_that_are_no_examples() -> None:
    with pytest.raises(AssertionError, match="at least four rows"):
        check_task(DomainQaTask(), ROWS[:3])
    with pytest.raises(AssertionError, match="row 1 is not an example"):
        check_task(DomainQaTask(), [{"x": 1}] * 4)


class Empty:
    """A plugin without a hook."""


class RegistersNothing:
    @hookimpl
    def register_tasks(self, register: Any) -> None:
        """Forgets to."""


class Observes:
    @hookimpl
    def job_finished(self, job: Any) -> None:
        """Nothing to check beyond its signature."""


class Broken:
    @hookimpl
    def register_tasks(self, register: Any) -> None:
        register(SameOnBothSides())
        register(SameOnBothSides())


def test_check_plugin() -> None:
    check_plugin(Observes())
    with pytest.raises(AssertionError, match="implements no hook"):
        check_plugin(Empty())
    with pytest.raises(AssertionError, match="registers nothing"):
        check_plugin(RegistersNothing())
    with pytest.raises(AssertionError, match="already registered"):
        check_plugin(Broken())
    with pytest.raises(AssertionError, match="rows for chat"):
        check_plugin(Observes(), rows={"chat": []})


class Lines(DatasetReader):
    name = "lines"
    description = "Lines of text."

    def __init__(self, place: str) -> None:
        self.place = place

    def accepts(self, files: Sequence[Path]) -> bool:
        return all(path.suffix == ".lines" for path in files)

    def read(self, files: Sequence[Path]) -> Iterator[RawRow | DataError]:
        for path in files:
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                yield RawRow(self.place.format(file=path.name, line=number), {"text": line})


def test_check_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.lines"
    path.write_text("one\ntwo\n")
    assert [row.place for row in check_reader(Lines("{file}:{line}"), [path])] == ["a.lines:1", "a.lines:2"]
    with pytest.raises(AssertionError, match="place 'line 1' is not `file:line`"):
        check_reader(Lines("line {line}"), [path])
    with pytest.raises(AssertionError, match=r"does not accept b\.txt"):
        check_reader(Lines("{file}"), [tmp_path / "b.txt"])
    path.write_text("")
    with pytest.raises(AssertionError, match="finds no rows"):
        check_reader(Lines("{file}"), [path])
