"""The bytes of an answer's tokens, joined, are its text, whatever the tokenizer's decoder makes of each alone."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from graft_server.engine.token_bytes import TokenBytes
from support.byte_tokenizers import byte_fallback, byte_level

pytestmark = pytest.mark.torch

TEXT = "Hello  wörld 😀\nend"


@pytest.mark.parametrize(("backend", "front"), [(byte_level(), ""), (byte_fallback(), " ")])
def test_the_bytes_are_those_of_the_text(backend: Tokenizer, front: str) -> None:
    backend.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    token_bytes = TokenBytes(tokenizer)
    tokens = tokenizer(TEXT + "<|im_end|>", add_special_tokens=False)["input_ids"]
    told = [token_bytes(token) for token in tokens]
    assert b"".join(told).decode() == f"{front}{TEXT}<|im_end|>"
    assert told[-1] == b"<|im_end|>"
    # A part of a character is told as it is.
    assert "😀".encode()[:1] in told
    assert token_bytes(len(tokenizer) + 5) == b""


def test_added_tokens_of_spaces_are_spaces() -> None:
    backend = byte_fallback()
    backend.add_tokens([AddedToken("\u2581\u2581\u2581", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert TokenBytes(tokenizer)(tokenizer.convert_tokens_to_ids("\u2581\u2581\u2581")) == b"   "
