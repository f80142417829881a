"""What vLLM gives for one request, as deltas of the engine contract. Pure: duck-typed over vLLM's outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from graft_server.engine.base import Delta, FinishReason, TokenLogprob


@dataclass(slots=True)
class Answer:
    """A generation in progress. The first delta goes out at once, later ones every ``tokens_per_delta`` tokens."""

    prompt_tokens: int
    tokens_per_delta: int
    stop_tokens: frozenset[int]
    piece: Callable[[int], str]
    top: int | None
    queued_seconds: float = 0.0
    generated: int = 0
    _text: str = ""
    _tokens: tuple[TokenLogprob, ...] = ()

    def take(self, output: Any) -> Delta | None:
        """Record an output; ``None`` while it is held back."""
        completion = output.outputs[0]
        before = self.generated
        self.generated += len(completion.token_ids)
        self._text += completion.text
        if self.top is not None and completion.logprobs:
            self._tokens += tuple(
                self._logprob(token, choices)
                for token, choices in zip(completion.token_ids, completion.logprobs, strict=False)
                if token not in self.stop_tokens
            )
        finish: FinishReason | None = None
        if completion.finish_reason is not None:
            finish = "length" if completion.finish_reason == "length" else "stop"
        crossed = before == 0 or self.generated // self.tokens_per_delta > before // self.tokens_per_delta
        if finish is None and (self.generated == before or not crossed):
            return None
        delta = Delta(
            text=self._text,
            tokens=self._tokens,
            finish_reason=finish,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.generated,
            queued_seconds=self.queued_seconds if finish else 0.0,
        )
        self._text, self._tokens = "", ()
        return delta

    def _logprob(self, token: int, choices: Any) -> TokenLogprob:
        ranked = sorted(choices.items(), key=lambda item: item[1].rank)[: self.top]
        top = tuple((self.piece(other), float(choice.logprob)) for other, choice in ranked)
        return TokenLogprob(self.piece(token), float(choices[token].logprob), top)
