"""The conformance suite: what a plugin author runs, in one line, to see that the host and the trainer can use it.

    from graft_plugins.testing import check_plugin, check_task

    check_plugin(my_plugin, rows={"my-task": ROWS})

Every check raises ``AssertionError`` with one sentence that says what is wrong and what is expected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from graft_plugins.manager import PluginHost
from graft_plugins.reader import DataError, DatasetReader, RawRow
from graft_plugins.registration import RegistrationError
from graft_plugins.registration import check_reader as check_reader_registration
from graft_plugins.registration import check_task as check_task_registration
from graft_plugins.task import (
    AnyTask,
    CandidateScore,
    Generate,
    Generation,
    Message,
    Output,
    Prompt,
    Report,
    RequestError,
    RowError,
    Score,
    Scores,
    Split,
    TrainingPair,
)

#: Pairs of a training set that are looked at; a task may yield very many.
_PAIRS = 1000


def check_plugin(plugin: object, rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> None:
    """A plugin (module or object) loads without a fault, registers or observes something, and its tasks conform.

    ``rows`` maps the name of a task to rows as they would stand in a data file, at least four a task; a task
    without rows only has its declarations checked.

    Raises:
        AssertionError: what is wrong, in one sentence.
    """
    host = PluginHost.load(builtins=[plugin], entry_points=False)
    assert not host.faults, "; ".join(str(fault) for fault in host.faults)
    record = host.plugins[0]
    things = [*record.tasks, *record.readers, *record.methods, *record.routers, *record.observes]
    assert things, f"plugin {record.name} registers nothing and observes nothing"
    rows = rows or {}
    unknown = set(rows) - set(host.tasks)
    assert not unknown, f"there are rows for {', '.join(sorted(unknown))}, which the plugin does not register"
    for name, task in host.tasks.items():
        if name in rows:
            check_task(task, rows[name])
        else:
            _check_declarations(task)


def check_task(task: AnyTask, rows: Sequence[Mapping[str, Any]]) -> None:
    """A task keeps its contract on ``rows``, raw rows as they would stand in a data file (at least four).

    Raises:
        AssertionError: what is wrong, in one sentence.
    """
    _check_declarations(task)
    assert len(rows) >= 4, f"give check_task at least four rows, to split them; there are {len(rows)}"
    examples = _check_examples(task, rows)
    split = _check_split(task, examples)
    state = _check_state(task, split)
    pairs = _check_training_pairs(task, split, state)
    _check_no_leak(task, split, state, pairs)
    _check_validation(task, split, state)
    _check_measuring(task, split.test, state)
    _check_text(task, split.test[0], state)


def check_reader(reader: DatasetReader, files: Sequence[Path]) -> list[RawRow]:
    """A reader accepts ``files`` and yields rows with a place in one of them; returns the rows.

    Raises:
        AssertionError: what is wrong, in one sentence.
    """
    try:
        check_reader_registration(reader)
    except RegistrationError as error:
        raise AssertionError(str(error)) from None
    names = ", ".join(path.name for path in files)
    assert reader.accepts(files), f"reader {reader.name} does not accept {names}"
    found = list(reader.read(files))
    starts = tuple(start for path in files for start in (f"{path.name}:", f"{path}:"))
    bare = {text for path in files for text in (path.name, str(path))}
    for row in found:
        assert isinstance(row, RawRow | DataError), f"reader {reader.name} yields {type(row).__name__}, not RawRow"
        assert row.place.startswith(starts) or row.place in bare, (
            f"reader {reader.name}: the place {row.place!r} is not `file:line` or `file:line:field` of {names}"
        )
    rows = [row for row in found if isinstance(row, RawRow)]
    assert rows, f"reader {reader.name} finds no rows in {names}"
    return rows


def _check_declarations(task: AnyTask) -> None:
    try:
        check_task_registration(task)
    except RegistrationError as error:
        raise AssertionError(str(error)) from None
    try:
        json.dumps(dict(task.training_defaults))
    except TypeError as error:
        raise AssertionError(f"task {task.name}: training_defaults must be plain JSON values: {error}") from None
    if task.example_request:
        try:
            task.request_model.model_validate(dict(task.example_request))
        except ValidationError as error:
            raise AssertionError(f"task {task.name}: example_request is not a valid request: {error}") from None


def _check_examples(task: AnyTask, rows: Sequence[Mapping[str, Any]]) -> list[BaseModel]:
    examples = []
    for number, row in enumerate(rows, start=1):
        try:
            example = task.parse_row(row)
        except (RowError, ValidationError) as error:
            raise AssertionError(f"task {task.name}: row {number} is not an example: {error}") from None
        assert isinstance(example, task.example_model), (
            f"task {task.name}: parse_row gives {type(example).__name__}, not {task.example_model.__name__}"
        )
        _check_round_trip(task, example)
        assert isinstance(task.group_key(example), str), f"task {task.name}: group_key must give a text"
        examples.append(example)
    try:
        task.parse_row({"no such column": 1})
    except (RowError, ValidationError):
        return examples
    except Exception as error:
        raise AssertionError(
            f"task {task.name}: parse_row must raise RowError or ValidationError for a bad row, not {error!r}"
        ) from error
    raise AssertionError(f"task {task.name}: parse_row takes a row without any of the task's fields")


def _check_round_trip(task: AnyTask, value: BaseModel) -> None:
    again = type(value).model_validate_json(value.model_dump_json())
    assert again == value, f"task {task.name}: {type(value).__name__} does not survive JSON: {value!r} became {again!r}"


def _check_split(task: AnyTask, examples: list[BaseModel]) -> Split[Any]:
    wanted = max(1, len(examples) // 4)
    split = task.split(examples, test_rows=wanted, seed=0)
    again = task.split(examples, test_rows=wanted, seed=0)
    assert split == again, f"task {task.name}: split gives different rows for the same seed"
    assert split.train, f"task {task.name}: split leaves nothing to train on out of {len(examples)} rows"
    assert split.test, f"task {task.name}: split holds nothing out of {len(examples)} rows"
    shared = {task.group_key(example) for example in split.train} & {task.group_key(row) for row in split.test}
    assert not shared, f"task {task.name}: the group {min(shared)!r} is on both sides of the split"
    return split


def _check_state(task: AnyTask, split: Split[Any]) -> Any:
    state = task.fit_state(split.train)
    assert isinstance(state, task.state_model), (
        f"task {task.name}: fit_state gives {type(state).__name__}, not {task.state_model.__name__}"
    )
    _check_round_trip(task, state)
    assert task.fit_state(split.train) == state, f"task {task.name}: fit_state differs from call to call"
    return state


def _check_training_pairs(task: AnyTask, split: Split[Any], state: Any) -> list[TrainingPair]:
    pairs = [pair for pair, _ in zip(task.training_pairs(split.train, state), range(_PAIRS), strict=False)]
    assert pairs, f"task {task.name}: training_pairs yields nothing for {len(split.train)} rows"
    again = [pair for pair, _ in zip(task.training_pairs(split.train, state), range(_PAIRS), strict=False)]
    assert pairs == again, f"task {task.name}: training_pairs differ from call to call, so a job could not resume"
    for pair in pairs:
        assert isinstance(pair, TrainingPair), f"task {task.name}: training_pairs yields {type(pair).__name__}"
        _check_prompt(task, pair.prompt)
        assert pair.target.strip(), f"task {task.name}: a training pair has an empty target"
    return pairs


def _check_prompt(task: AnyTask, prompt: object) -> None:
    assert isinstance(prompt, Prompt), f"task {task.name}: prompt gives {type(prompt).__name__}, not Prompt"
    assert (prompt.text is None) == bool(prompt.messages), (
        f"task {task.name}: a prompt has either messages or text, and not both"
    )
    texts = [prompt.text] if prompt.text is not None else [message.content for message in prompt.messages]
    assert all(text.strip() for text in texts), f"task {task.name}: the prompt has an empty text"


def _check_no_leak(task: AnyTask, split: Split[Any], state: Any, pairs: Sequence[TrainingPair]) -> None:
    learnt = {(pair.prompt, pair.target) for pair in pairs}
    for example in split.test:
        question = (task.prompt(task.request_for(example, state), state), task.target(example))
        assert question not in learnt, f"task {task.name}: the held-out row {example!r} is among the training pairs"


def _check_validation(task: AnyTask, split: Split[Any], state: Any) -> None:
    inner = task.validation_split(split.train, validation_rows=1, seed=1)
    assert inner.train, f"task {task.name}: validation_split leaves nothing to train on"
    watched = list(task.validation_pairs(inner.test, state))
    again = list(task.validation_pairs(inner.test, state))
    assert watched == again, f"task {task.name}: validation_pairs differ from call to call, so losses could not be told"
    for pair in watched:
        assert isinstance(pair, TrainingPair), f"task {task.name}: validation_pairs yields {type(pair).__name__}"
    learnt = {(pair.prompt, pair.target) for pair in task.training_pairs(inner.train, state)}
    leaked = next((pair for pair in watched if (pair.prompt, pair.target) in learnt), None)
    assert leaked is None, f"task {task.name}: the pair {leaked!r} to watch the loss on is among the training pairs"


def _check_measuring(task: AnyTask, test: Sequence[Any], state: Any) -> None:
    """Right answers must measure at least as well as other rows' answers."""
    targets = [task.target(example) for example in test]
    for target in targets:
        assert isinstance(target, str), f"task {task.name}: target gives {type(target).__name__}, not str"
    right = _measure(task, test, state, targets)
    wrong = _measure(task, test, state, [_other(target, targets) for target in targets])
    better = right.metrics[right.primary].higher_is_better
    assert right.score >= wrong.score if better else right.score <= wrong.score, (
        f"task {task.name}: right answers score {right.primary} {right.score:g}, wrong ones {wrong.score:g}"
    )
    for name, report in task.baselines(test, state).items():
        _check_report(task, report, len(test))
        assert right.primary in report.metrics, f"task {task.name}: baseline {name!r} has no {right.primary!r}"


def _other(target: str, targets: Sequence[str]) -> str:
    """Another row's answer, which fits any constraint of the task; the target reversed where all agree."""
    return next((text for text in targets if text != target), target[::-1])


def _measure(task: AnyTask, test: Sequence[Any], state: Any, answers: Sequence[str]) -> Report:
    responses = []
    for example, answer in zip(test, answers, strict=True):
        request = task.request_for(example, state)
        assert isinstance(request, task.request_model), (
            f"task {task.name}: request_for gives {type(request).__name__}, not {task.request_model.__name__}"
        )
        _check_round_trip(task, request)
        _check_prompt(task, task.prompt(request, state))
        response = task.parse(request, _output(task, request, state, answer, task.target(example)), state)
        assert isinstance(response, task.response_model), (
            f"task {task.name}: parse gives {type(response).__name__}, not {task.response_model.__name__}"
        )
        _check_round_trip(task, response)
        responses.append(response)
    report = task.evaluate(list(zip(test, responses, strict=True)), state)
    _check_report(task, report, len(test))
    return report


def _output(task: AnyTask, request: Any, state: Any, answer: str, target: str) -> Output:
    """What an engine would give if the model's answer were ``answer``."""
    decoding = task.decoding(request, state)
    if isinstance(decoding, Generate):
        asked = decoding.sampling.logprobs is not None
        return Generation(text=answer, logprobs=(-0.1,) * max(1, len(answer.split())) if asked else ())
    assert isinstance(decoding, Score), f"task {task.name}: decoding gives {type(decoding).__name__}"
    assert target in decoding.candidates, f"task {task.name}: the answer {target!r} is not among the candidates"

    def likelihood(text: str) -> float:
        if answer != target and text == target:
            return -9.0
        return -0.1 if text == answer else -2.0

    scored = (CandidateScore(text=text, logprob=likelihood(text), tokens=1) for text in decoding.candidates)
    return Scores(candidates=tuple(scored))


def _check_report(task: AnyTask, report: object, rows: int) -> None:
    assert isinstance(report, Report), f"task {task.name}: evaluate gives {type(report).__name__}, not Report"
    assert report.primary in report.metrics, (
        f"task {task.name}: the primary metric {report.primary!r} is not among {', '.join(report.metrics)}"
    )
    assert report.rows == rows, f"task {task.name}: the report counts {report.rows} rows of {rows}"


def _check_text(task: AnyTask, example: Any, state: Any) -> None:
    request = task.request_for(example, state)
    target = task.target(example)
    response = task.parse(request, _output(task, request, state, target, target), state)
    text = task.text_of(response)
    assert isinstance(text, str), f"task {task.name}: text_of gives {type(text).__name__}, not str"
    assert text.strip(), f"task {task.name}: text_of gives an empty text for a right answer"
    try:
        typed = task.request_from_text("some words")
    except RequestError:
        typed = None
    if typed is not None:
        assert isinstance(typed, task.request_model), (
            f"task {task.name}: request_from_text gives {type(typed).__name__}, not {task.request_model.__name__}"
        )
        _check_prompt(task, task.prompt(typed, state))
    try:
        told = task.request_from_messages([Message(role="user", content="some words")])
    except RequestError:
        told = None
    assert told is None or isinstance(told, task.request_model), (
        f"task {task.name}: request_from_messages gives {type(told).__name__}"
    )


__all__ = ["check_plugin", "check_reader", "check_task"]
