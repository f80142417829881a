"""From a job's files to tokenised rows: read, split, fit the task's state, pair, tokenise."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from graft_plugins.dataset import LoadedDataset, load_dataset
from graft_plugins.manager import PluginHost
from graft_plugins.task import AnyTask, TrainingPair
from graft_server.base_model.prompt import encode_prompt, encode_target
from graft_server.training.options import TrainingOptions
from graft_server.training.rows import TokenRow
from graft_server.training.spec import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class DatasetError(ValueError):
    """Data that nothing can be trained on. One sentence, with the place of the first fault."""


@dataclass(frozen=True, slots=True)
class JobData:
    """What a job trains on and is measured by."""

    train: list[TokenRow]
    validation: list[TokenRow]
    held_out: list[BaseModel]
    state: BaseModel
    #: Rows that were no examples, and training pairs that were longer than ``max_length``.
    bad_rows: int
    long_rows: int
    #: Why the chat template refused training pairs, a sentence each.
    refused: list[str]


def load_job_data(
    host: PluginHost,
    task: AnyTask,
    files: Sequence[Path],
    data_format: str | None,
    options: TrainingOptions,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_length: int,
    skip_bad: bool,
    watch: DataSpec | None = None,
) -> JobData:
    """Read the files and make rows of them, the same ones for the same seed. The loss is watched on the rows of
    ``watch``, or without it on some that are held out.

    Raises:
        DatasetError: a file can't be read, a row is bad or refused by the chat template and ``skip_bad`` is off,
            nothing is left to train on, or nothing to stop early by.
        UnknownNameError: there is no such format.
    """
    dataset = _load(host, task, DataSpec(files=list(files), format=data_format, skip_bad=skip_bad))
    examples = dataset.examples
    if len(examples) < 2:
        raise DatasetError(f"{len(examples)} usable rows are too few: give at least 2, one to train and one to test on")
    split = task.split(examples, test_rows=options.test_rows(len(examples)), seed=options.seed)
    if not split.train or not split.test:
        side = "to train on" if not split.train else "to hold out for the evaluation"
        raise DatasetError(
            f"no row is left {side}: the {len(examples)} examples are too alike to be split without the one side "
            "giving the other's answers away; add rows of other groups"
        )
    state = task.fit_state(split.train)
    watched = 0 if watch is not None else options.watched_rows(len(split.train))
    seed = options.seed + 1
    inner = task.validation_split(split.train, validation_rows=watched, seed=seed) if watched else None
    limit = min(options.max_length, context_length)
    pairs = list(task.training_pairs(inner.train if inner else split.train, state))
    train = _tokenise(pairs, tokenizer, limit, skip_bad=skip_bad)
    if not train.rows:
        raise DatasetError(_nothing_left(len(pairs), train.refused, limit))
    to_watch = inner.test if inner else _load(host, task, watch).examples if watch is not None else []
    watched_pairs = list(task.validation_pairs(to_watch, state))
    # A task may make many pairs of one example. Rows that somebody chose are all watched.
    most = options.validation_rows if watch is None else None
    skip_bad_watched = skip_bad if watch is None else watch.skip_bad
    validation = _tokenise(watched_pairs[:most], tokenizer, limit, skip_bad=skip_bad_watched).rows
    if options.early_stopping_patience and not validation:
        raise DatasetError(
            f"early_stopping_patience is {options.early_stopping_patience}, but no row is there to watch the loss on "
            f"(at most a tenth of the {len(split.train)} training rows is held out for it): give more rows, set "
            "validation_dataset, or set early_stopping_patience=0"
        )
    return JobData(
        train=train.rows,
        validation=validation,
        # Whole groups were held out, which can be many more rows than were asked for.
        held_out=_sample(split.test, options.test_rows(len(examples)), options.seed),
        state=state,
        bad_rows=len(dataset.errors),
        long_rows=len(pairs) - len(train.rows) - len(train.refused),
        refused=train.refused,
    )


def _load(host: PluginHost, task: AnyTask, data: DataSpec) -> LoadedDataset:
    dataset = load_dataset(host.readers, task, data.files, data.format)
    if dataset.errors and (dataset.fatal or not data.skip_bad):
        first = dataset.fatal or dataset.errors[0]
        more = f" (and {len(dataset.errors) - 1} more bad rows)" if len(dataset.errors) > 1 else ""
        raise DatasetError(f"{first}{more}")
    return dataset


def _sample(rows: Sequence[BaseModel], most: int, seed: int) -> list[BaseModel]:
    """At most so many of the rows, in their order, the same ones for the same seed."""
    if len(rows) <= most:
        return list(rows)
    return [rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), most))]


@dataclass(frozen=True, slots=True)
class _Tokenised:
    rows: list[TokenRow]
    refused: list[str]


def _tokenise(pairs: Sequence[TrainingPair], tokenizer: Any, limit: int, *, skip_bad: bool) -> _Tokenised:
    """Rows of at most ``limit`` tokens; a pair without an answer token is left out as well.

    Raises:
        DatasetError: the chat template refuses a pair and ``skip_bad`` is off.
    """
    found = _Tokenised([], [])
    for pair in pairs:
        try:
            prompt = encode_prompt(tokenizer, pair.prompt.messages, pair.prompt.text, pair.prompt.tools)
        except Exception as error:  # a chat template is a program of the model's authors
            reason = f"the base model's chat template refuses the row that begins {_beginning(pair)!r}: {error}"
            if not skip_bad:
                raise DatasetError(reason) from error
            found.refused.append(reason)
            continue
        answer = encode_target(tokenizer, pair.target)
        if answer and 2 <= len(prompt) + len(answer) <= limit:
            found.rows.append(TokenRow((*prompt, *answer), len(prompt)))
    return found


def _beginning(pair: TrainingPair) -> str:
    text = pair.prompt.text or "\n".join(message.content for message in pair.prompt.messages)
    return text[:60]


def _nothing_left(pairs: int, refused: Sequence[str], limit: int) -> str:
    if not pairs:
        return "the task makes no training pairs of these rows"
    if len(refused) == pairs:
        return f"all {pairs} training rows were left out: {refused[0]}"
    long = f"{pairs - len(refused)} of them" if refused else f"all {pairs} training rows"
    return f"{long} are longer than {limit} tokens; set a larger max_length"
