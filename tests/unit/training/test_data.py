"""From files to rows of tokens: what is trained on, what is watched, and rows that the base model can't be asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from graft_plugins.manager import PluginHost
from graft_server.base_model.folder import BaseModel
from graft_server.base_model.loading import load_tokenizer
from graft_server.training.data import DatasetError, JobData, load_job_data
from graft_server.training.options import TrainingOptions
from graft_server.training.spec import DataSpec

pytestmark = pytest.mark.torch

#: As Mistral's and Gemma's templates do.
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}<|im_start|>{{ m.content }}{% endfor %}"
)
ALTERNATE = [
    [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"It is {n}"}] for n in range(40)
]
TWO_IN_A_ROW = [{"role": "user", "content": "Hello there"}, *ALTERNATE[0]]

Load = Callable[..., JobData]


@pytest.fixture
def tokenizer(base: BaseModel) -> Any:
    return load_tokenizer(base)


@pytest.fixture
def load(host: PluginHost, tokenizer: Any, tmp_path: Path) -> Load:
    def load(
        task: str, rows: Sequence[Mapping[str, Any]], *, skip_bad: bool = False, watch: Any = None, **options: Any
    ) -> JobData:
        return load_job_data(
            host,
            host.task(task),
            [written(tmp_path / "rows.jsonl", rows)],
            None,
            TrainingOptions.model_validate(options),
            tokenizer,
            context_length=512,
            skip_bad=skip_bad,
            watch=watch,
        )

    return load


def written(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def chats(*conversations: Any) -> list[dict[str, Any]]:
    return [{"messages": conversation} for conversation in conversations]


def test_the_loss_of_recommenders_is_watched_on_items_that_nobody_learns(load: Load, tokenizer: Any) -> None:
    histories = [{"user": f"u{user}", "history": [f"{user}/{n}" for n in range(20)]} for user in range(30)]
    data = load("recommendation", histories, validation_rows=3)
    learnt = {line for row in data.train for line in tokenizer.decode(row.ids[row.answer_start :]).splitlines()}
    watched = [tokenizer.decode(row.ids[row.answer_start : -1]).strip() for row in data.validation]
    assert len(watched) == 3
    assert all(title.endswith("/18") for title in watched)
    assert learnt.isdisjoint(watched)
    # Of each user the last item is for the evaluation; the others have lost no more.
    assert len([title for title in learnt if title.endswith("/18")]) == 27


def test_a_row_that_the_chat_template_refuses_is_named(load: Load, tokenizer: Any) -> None:
    tokenizer.chat_template = ALTERNATING
    with pytest.raises(DatasetError, match=r"refuses the row that begins 'Hello there\\nSay 0': .*must alternate"):
        load("chat", chats(*ALTERNATE, TWO_IN_A_ROW), eval_rows=1, validation_rows=0, seed=1)


def test_rows_that_the_chat_template_refuses_are_left_out_where_bad_rows_are(load: Load, tokenizer: Any) -> None:
    tokenizer.chat_template = ALTERNATING
    data = load("chat", chats(*ALTERNATE, TWO_IN_A_ROW), skip_bad=True, eval_rows=1, validation_rows=0, seed=1)
    assert (len(data.train), data.bad_rows, data.long_rows) == (39, 0, 0)
    assert len(data.refused) == 1
    assert "Hello there" in data.refused[0]
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(DatasetError, match=r"all 40 training rows were left out: .*never"):
        load("chat", chats(*ALTERNATE, TWO_IN_A_ROW), skip_bad=True, eval_rows=1, validation_rows=0)


def test_rows_to_watch_are_left_out_as_their_own_dataset_says(load: Load, tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = ALTERNATING
    file = written(tmp_path / "watched.jsonl", chats(ALTERNATE[0], TWO_IN_A_ROW))
    data = load("chat", chats(*ALTERNATE), watch=DataSpec(files=[file], format=None, skip_bad=True))
    assert len(data.validation) == 1
    with pytest.raises(DatasetError, match="Hello there"):
        load("chat", chats(*ALTERNATE), watch=DataSpec(files=[file], format=None, skip_bad=False))


def test_too_few_rows_to_stop_early_by_are_an_error(load: Load) -> None:
    assert not load("chat", chats(*ALTERNATE[:8])).validation
    with pytest.raises(DatasetError, match=r"patience is 2, but no row .* tenth of the 7 .* give more rows"):
        load("chat", chats(*ALTERNATE[:8]), early_stopping_patience=2)
