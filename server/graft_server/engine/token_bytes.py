"""Which bytes each token of a vocabulary stands for. Decoded alone, a part of a character is lost, and with some
decoders the space in front of a word."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

#: SentencePiece's mark of a space, and its tokens for single bytes.
_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """The bytes of a tokenizer's tokens; those of an answer's tokens, joined, are its text in UTF-8."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        kinds = set(_decoders(tokenizer))
        self._byte_level = {char: byte for byte, char in bytes_to_unicode().items()} if "ByteLevel" in kinds else None
        self._marks_spaces = bool(kinds & {"ByteFallback", "Metaspace"})
        self._added: dict[int, str] = {
            token: added.content.replace(_SPACE, " ") if self._marks_spaces and not added.special else added.content
            for token, added in tokenizer.added_tokens_decoder.items()
        }

    def __call__(self, token: int) -> bytes:
        """The bytes of one token; of a special one, its name."""
        if (name := self._added.get(token)) is not None:
            return name.encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # a row of the model's output that no token has
            return b""
        if self._byte_level is not None and all(char in self._byte_level for char in piece):
            return bytes(self._byte_level[char] for char in piece)
        if self._marks_spaces:
            found = _BYTE.fullmatch(piece)
            return bytes.fromhex(found[1]) if found else piece.replace(_SPACE, " ").encode()
        return str(self._tokenizer.decode([token])).encode()


def _decoders(tokenizer: Any) -> Iterator[str]:
    """The types of the decoders that turn a fast tokenizer's tokens into text."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    left = [json.loads(decoder.__getstate__())] if decoder is not None else []
    while left:
        each = left.pop()
        yield each["type"]
        left += each.get("decoders", [])
