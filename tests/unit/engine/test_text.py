"""Streamed text is final: whole characters, and nothing of a stop string."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from support.byte_tokenizers import byte_fallback
from support.tiny_model import save_tiny_model

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tiny_model(Path(tmp_path_factory.mktemp("model"))))


def stream(tokenizer: Any, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    from graft_server.engine.torch.text import TextStream

    out = TextStream(tokenizer, stop)
    pieces = []
    for token in tokenizer(text)["input_ids"]:
        pieces.append(out.push(token))
        if out.stopped:
            return pieces, True
    return [*pieces, out.flush()], False


def test_a_character_of_several_bytes_comes_whole(tokenizer: Any) -> None:
    pieces, _ = stream(tokenizer, "a€b")
    assert [piece for piece in pieces if piece] == ["a", "€", "b"]


def test_bytes_that_never_became_a_character_are_shown_at_the_end(tokenizer: Any) -> None:
    from graft_server.engine.torch.text import TextStream

    out = TextStream(tokenizer)
    first = tokenizer("€")["input_ids"][0]
    assert out.push(first) == ""
    assert out.flush() == "\ufffd"


def test_the_beginning_of_a_stop_string_waits(tokenizer: Any) -> None:
    pieces, stopped = stream(tokenizer, "one END two", ("END",))
    assert stopped
    assert "".join(pieces) == "one "
    pieces, stopped = stream(tokenizer, "one EN", ("END",))
    assert not stopped
    assert pieces[-3:] == ["", "", "EN"]


def test_a_stop_string_that_may_not_stop_is_text_and_is_not_found_later(tokenizer: Any) -> None:
    from graft_server.engine.torch.text import TextStream

    # "XENDY" keeps "XEND" back, with a whole "END" inside.
    out = TextStream(tokenizer, ("END", "XENDY"))
    tokens = tokenizer("aXENDbEND")["input_ids"]
    pieces = [out.push(token, may_stop=i >= 5) for i, token in enumerate(tokens)]
    assert out.stopped
    assert "".join(pieces) == "aXENDb"


@given(st.text(alphabet="abAB €ü", max_size=30), st.lists(st.text(alphabet="abAB", min_size=1, max_size=3), max_size=3))
def test_pieces_add_up_to_the_text_before_the_first_stop(tokenizer: Any, text: str, stops: list[str]) -> None:
    pieces, stopped = stream(tokenizer, text, tuple(stops))
    # The first stop string to be complete ends the answer.
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert stopped == bool(ends)
    if ends:
        first = min(end for end, _ in ends)
        assert "".join(pieces) == text[: min(begin for end, begin in ends if end == first)]
    else:
        assert "".join(pieces) == text


def streamed(tokenizer: Any, tokens: list[int]) -> str:
    from graft_server.engine.torch.text import TextStream

    out = TextStream(tokenizer)
    return "".join([*map(out.push, tokens), out.flush()])


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["\u2581H", "<0x0A>", "<0xE2>", "\u2581w", "o", "\u2581w"], "H\n\ufffd wo w"),
        (["\u2581H", "<0xC3>", "<0xB6>", "<0xC3>", "o"], "H\u00f6\ufffdo"),
        (["<0xE2>", "<0x82>", "<0xAC>", "<0xE2>"], "\u20ac\ufffd"),
    ],
)
def test_bytes_that_are_no_character_end_no_answer(pieces: list[str], text: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_fallback())
    assert streamed(tokenizer, tokenizer.convert_tokens_to_ids(pieces)) == text


@given(st.lists(st.integers(0, 268), max_size=40))
def test_any_tokens_of_a_tokenizer_with_bytes_are_text(tokens: list[int]) -> None:
    backend = byte_fallback()
    text, whole = streamed(PreTrainedTokenizerFast(tokenizer_object=backend), tokens), backend.decode(tokens)
    if "\ufffd" not in whole:
        assert text == whole
