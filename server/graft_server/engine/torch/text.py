"""From token ids back to text, piece by piece, and the end of an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tokenizers.decoders import DecodeStream

#: What the stream fails with where a token makes the text before it another one: behind bytes that are no character,
#: tokenizers that fall back to bytes decode all bytes of the run as none.
_ANOTHER_TEXT = "Invalid prefix"


@dataclass(slots=True, eq=False)
class TextStream:
    """Turns tokens into text that is final: bytes of a character come together, and what may still become a stop
    string is held back."""

    tokenizer: Any
    stop: tuple[str, ...] = ()
    stopped: bool = False
    _stream: DecodeStream = field(default_factory=lambda: DecodeStream(skip_special_tokens=True))
    _held: str = ""
    #: Tokens that are no text yet: parts of a character.
    _parts: list[int] = field(default_factory=list)

    def push(self, token: int, *, may_stop: bool = True) -> str:
        """The text that this token makes final. Sets ``stopped`` when it completes a stop string, which is not
        returned; where it may not stop the answer, the string is text like any other."""
        before = len(self._held)
        self._held += self._decode(token)
        # A stop string that was complete before this token was let pass.
        found = (self._held.find(stop, max(0, before - len(stop) + 1)) for stop in self.stop if stop)
        ends = [at for at in found if at >= 0]
        if ends and may_stop:
            self.stopped = True
            text, self._held = self._held[: min(ends)], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self.stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def flush(self) -> str:
        """What is still held back, at the end of an answer without a stop string; bytes that never became a whole
        character are shown as the replacement character."""
        text, self._held = self._held + self._text_of(self._parts), ""
        return text

    def _decode(self, token: int) -> str:
        try:
            piece = self._stream.step(self.tokenizer.backend_tokenizer, token) or ""
        except Exception as error:
            if not str(error).startswith(_ANOTHER_TEXT):
                raise
            piece = self._text_of([*self._parts, token])
            self._stream = DecodeStream(ids=[token], skip_special_tokens=True)
        self._parts = [] if piece else [*self._parts, token]
        return piece

    def _text_of(self, tokens: list[int]) -> str:
        return str(self.tokenizer.backend_tokenizer.decode(tokens, skip_special_tokens=True))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
